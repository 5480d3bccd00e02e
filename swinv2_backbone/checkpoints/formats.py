# ruff: noqa: E501 (one pair of names per line)
"""What each library calls the parameters of SwinV2: one table per format, ours on the left.

Our names are those of the official repository, with an output norm ``norm{n}`` per stage. The
placeholders and the other notation are explained in :mod:`.key_rules`; the tables are read in both
directions. A new library is one more entry of ``FORMATS``.
"""

import torch
from torch import Tensor

from .key_rules import Columns, Format

# What the official model keeps among its weights, beside parameters.
OFFICIAL_BUFFERS = ('relative_coords_table', 'relative_position_index', 'attn_mask')


def _unfold_order(columns: int) -> Tensor:
    """nn.Unfold merges patches as (channel, row, column), ours are (column, row, channel)."""
    ours = torch.arange(columns).view(2, 2, -1)
    return ours.permute(2, 1, 0).flatten()


_FORMATS = (
    Format(
        'swinv2_backbone',
        {
            'patch_embed.proj.{p}': 'patch_embed.proj.{p}',
            'patch_embed.norm.{p}': 'patch_embed.norm.{p}',
            'mask_token': 'mask_token',
            'layers.{i}.blocks.{j}.attn.logit_scale': 'layers.{i}.blocks.{j}.attn.logit_scale',
            'layers.{i}.blocks.{j}.attn.cpb_mlp.{c}.{p}': 'layers.{i}.blocks.{j}.attn.cpb_mlp.{c}.{p}',
            'layers.{i}.blocks.{j}.attn.qkv.weight': 'layers.{i}.blocks.{j}.attn.qkv.weight',
            'layers.{i}.blocks.{j}.attn.q_bias': 'layers.{i}.blocks.{j}.attn.q_bias',
            'layers.{i}.blocks.{j}.attn.v_bias': 'layers.{i}.blocks.{j}.attn.v_bias',
            'layers.{i}.blocks.{j}.attn.proj.{p}': 'layers.{i}.blocks.{j}.attn.proj.{p}',
            'layers.{i}.blocks.{j}.norm1.{p}': 'layers.{i}.blocks.{j}.norm1.{p}',
            'layers.{i}.blocks.{j}.norm2.{p}': 'layers.{i}.blocks.{j}.norm2.{p}',
            'layers.{i}.blocks.{j}.mlp.fc1.{p}': 'layers.{i}.blocks.{j}.mlp.fc1.{p}',
            'layers.{i}.blocks.{j}.mlp.fc2.{p}': 'layers.{i}.blocks.{j}.mlp.fc2.{p}',
            'layers.{i}.blocks.{j}.attn.relative_coords_table': 'layers.{i}.blocks.{j}.attn.relative_coords_table',
            'layers.{i}.blocks.{j}.attn.relative_position_index': 'layers.{i}.blocks.{j}.attn.relative_position_index',
            'layers.{i}.blocks.{j}.attn_mask': 'layers.{i}.blocks.{j}.attn_mask',
            'layers.{d}.downsample.reduction.weight': 'layers.{d}.downsample.reduction.weight',
            'layers.{d}.downsample.norm.{p}': 'layers.{d}.downsample.norm.{p}',
            'norm{n}.{p}': 'norm{n}.{p}',
        },
        head='head.fc.{p}',
        prefix='backbone.',
        wrapper='state_dict',
        bare_lacks_norm=True,
    ),
    Format(
        'official',
        {
            'patch_embed.proj.{p}': 'patch_embed.proj.{p}',
            'patch_embed.norm.{p}': 'patch_embed.norm.{p}',
            'mask_token': 'mask_token',
            'layers.{i}.blocks.{j}.attn.logit_scale': 'layers.{i}.blocks.{j}.attn.logit_scale',
            'layers.{i}.blocks.{j}.attn.cpb_mlp.{c}.{p}': 'layers.{i}.blocks.{j}.attn.cpb_mlp.{c}.{p}',
            'layers.{i}.blocks.{j}.attn.qkv.weight': 'layers.{i}.blocks.{j}.attn.qkv.weight',
            'layers.{i}.blocks.{j}.attn.q_bias': 'layers.{i}.blocks.{j}.attn.q_bias',
            'layers.{i}.blocks.{j}.attn.v_bias': 'layers.{i}.blocks.{j}.attn.v_bias',
            'layers.{i}.blocks.{j}.attn.proj.{p}': 'layers.{i}.blocks.{j}.attn.proj.{p}',
            'layers.{i}.blocks.{j}.norm1.{p}': 'layers.{i}.blocks.{j}.norm1.{p}',
            'layers.{i}.blocks.{j}.norm2.{p}': 'layers.{i}.blocks.{j}.norm2.{p}',
            'layers.{i}.blocks.{j}.mlp.fc1.{p}': 'layers.{i}.blocks.{j}.mlp.fc1.{p}',
            'layers.{i}.blocks.{j}.mlp.fc2.{p}': 'layers.{i}.blocks.{j}.mlp.fc2.{p}',
            'layers.{i}.blocks.{j}.attn.relative_coords_table': 'layers.{i}.blocks.{j}.attn.relative_coords_table',
            'layers.{i}.blocks.{j}.attn.relative_position_index': 'layers.{i}.blocks.{j}.attn.relative_position_index',
            'layers.{i}.blocks.{j}.attn_mask': 'layers.{i}.blocks.{j}.attn_mask',
            'layers.{d}.downsample.reduction.weight': 'layers.{d}.downsample.reduction.weight',
            'layers.{d}.downsample.norm.{p}': 'layers.{d}.downsample.norm.{p}',
            'norm3.{p}': 'norm.{p}',
        },
        head='head.{p}',
        # SimMIM's released files have an older name; Microsoft's utils_simmim.py renames it.
        older_names={
            'layers.{i}.blocks.{j}.attn.cpb_mlp.{c}.{p}': 'layers.{i}.blocks.{j}.attn.rpe_mlp.{c}.{p}'
        },
        wrapper='model',
        buffers=OFFICIAL_BUFFERS,
    ),
    Format(
        'mmpretrain',
        {
            'patch_embed.proj.{p}': 'patch_embed.projection.{p}',
            'patch_embed.norm.{p}': 'patch_embed.norm.{p}',
            'mask_token': 'mask_token',
            'layers.{i}.blocks.{j}.attn.logit_scale': 'stages.{i}.blocks.{j}.attn.w_msa.logit_scale',
            'layers.{i}.blocks.{j}.attn.cpb_mlp.{c}.{p}': 'stages.{i}.blocks.{j}.attn.w_msa.cpb_mlp.{c}.{p}',
            'layers.{i}.blocks.{j}.attn.qkv.weight': 'stages.{i}.blocks.{j}.attn.w_msa.qkv.weight',
            'layers.{i}.blocks.{j}.attn.q_bias': 'stages.{i}.blocks.{j}.attn.w_msa.q_bias',
            'layers.{i}.blocks.{j}.attn.v_bias': 'stages.{i}.blocks.{j}.attn.w_msa.v_bias',
            'layers.{i}.blocks.{j}.attn.proj.{p}': 'stages.{i}.blocks.{j}.attn.w_msa.proj.{p}',
            'layers.{i}.blocks.{j}.norm1.{p}': 'stages.{i}.blocks.{j}.norm1.{p}',
            'layers.{i}.blocks.{j}.norm2.{p}': 'stages.{i}.blocks.{j}.norm2.{p}',
            'layers.{i}.blocks.{j}.mlp.fc1.{p}': 'stages.{i}.blocks.{j}.ffn.layers.0.0.{p}',
            'layers.{i}.blocks.{j}.mlp.fc2.{p}': 'stages.{i}.blocks.{j}.ffn.layers.1.{p}',
            'layers.{i}.blocks.{j}.attn.relative_coords_table': 'stages.{i}.blocks.{j}.attn.w_msa.relative_coords_table',
            'layers.{i}.blocks.{j}.attn.relative_position_index': 'stages.{i}.blocks.{j}.attn.w_msa.relative_position_index',
            'layers.{i}.blocks.{j}.attn_mask': 'stages.{i}.blocks.{j}.attn_mask',
            'layers.{d}.downsample.reduction.weight': Columns(
                'stages.{d+1}.downsample.reduction.weight', _unfold_order
            ),
            'layers.{d}.downsample.norm.{p}': 'stages.{d+1}.downsample.norm.{p}',
            'norm{n}.{p}': 'norm{n}.{p}',
        },
        head='head.fc.{p}',
        prefix='backbone.',
        wrapper='state_dict',
        buffers=('relative_coords_table', 'relative_position_index'),
    ),
    Format(
        'hf',
        {
            'patch_embed.proj.{p}': 'embeddings.patch_embeddings.projection.{p}',
            'patch_embed.norm.{p}': 'embeddings.norm.{p}',
            'mask_token': 'embeddings.mask_token',
            'layers.{i}.blocks.{j}.attn.logit_scale': 'encoder.layers.{i}.blocks.{j}.attention.self.logit_scale',
            'layers.{i}.blocks.{j}.attn.cpb_mlp.{c}.{p}': 'encoder.layers.{i}.blocks.{j}.attention.self.continuous_position_bias_mlp.{c}.{p}',
            'layers.{i}.blocks.{j}.attn.qkv.weight': (
                'encoder.layers.{i}.blocks.{j}.attention.self.query.weight',
                'encoder.layers.{i}.blocks.{j}.attention.self.key.weight',
                'encoder.layers.{i}.blocks.{j}.attention.self.value.weight',
            ),
            'layers.{i}.blocks.{j}.attn.q_bias': 'encoder.layers.{i}.blocks.{j}.attention.self.query.bias',
            'layers.{i}.blocks.{j}.attn.v_bias': 'encoder.layers.{i}.blocks.{j}.attention.self.value.bias',
            'layers.{i}.blocks.{j}.attn.proj.{p}': 'encoder.layers.{i}.blocks.{j}.attention.output.dense.{p}',
            'layers.{i}.blocks.{j}.norm1.{p}': 'encoder.layers.{i}.blocks.{j}.layernorm_before.{p}',
            'layers.{i}.blocks.{j}.norm2.{p}': 'encoder.layers.{i}.blocks.{j}.layernorm_after.{p}',
            'layers.{i}.blocks.{j}.mlp.fc1.{p}': 'encoder.layers.{i}.blocks.{j}.intermediate.dense.{p}',
            'layers.{i}.blocks.{j}.mlp.fc2.{p}': 'encoder.layers.{i}.blocks.{j}.output.dense.{p}',
            'layers.{i}.blocks.{j}.attn.relative_coords_table': 'encoder.layers.{i}.blocks.{j}.attention.self.relative_coords_table',
            'layers.{i}.blocks.{j}.attn.relative_position_index': 'encoder.layers.{i}.blocks.{j}.attention.self.relative_position_index',
            'layers.{i}.blocks.{j}.attn_mask': 'encoder.layers.{i}.blocks.{j}.attn_mask',
            'layers.{d}.downsample.reduction.weight': 'encoder.layers.{d}.downsample.reduction.weight',
            'layers.{d}.downsample.norm.{p}': 'encoder.layers.{d}.downsample.norm.{p}',
            'norm3.{p}': 'layernorm.{p}',
        },
        head='classifier.{p}',
        prefix='swinv2.',
        bare_lacks_norm=True,
        config_json='transformers',
    ),
    Format(
        'timm',
        {
            'patch_embed.proj.{p}': 'patch_embed.proj.{p}',
            'patch_embed.norm.{p}': 'patch_embed.norm.{p}',
            'mask_token': 'mask_token',
            'layers.{i}.blocks.{j}.attn.logit_scale': 'layers.{i}.blocks.{j}.attn.logit_scale',
            'layers.{i}.blocks.{j}.attn.cpb_mlp.{c}.{p}': 'layers.{i}.blocks.{j}.attn.cpb_mlp.{c}.{p}',
            'layers.{i}.blocks.{j}.attn.qkv.weight': 'layers.{i}.blocks.{j}.attn.qkv.weight',
            'layers.{i}.blocks.{j}.attn.q_bias': 'layers.{i}.blocks.{j}.attn.q_bias',
            'layers.{i}.blocks.{j}.attn.v_bias': 'layers.{i}.blocks.{j}.attn.v_bias',
            'layers.{i}.blocks.{j}.attn.proj.{p}': 'layers.{i}.blocks.{j}.attn.proj.{p}',
            'layers.{i}.blocks.{j}.norm1.{p}': 'layers.{i}.blocks.{j}.norm1.{p}',
            'layers.{i}.blocks.{j}.norm2.{p}': 'layers.{i}.blocks.{j}.norm2.{p}',
            'layers.{i}.blocks.{j}.mlp.fc1.{p}': 'layers.{i}.blocks.{j}.mlp.fc1.{p}',
            'layers.{i}.blocks.{j}.mlp.fc2.{p}': 'layers.{i}.blocks.{j}.mlp.fc2.{p}',
            'layers.{i}.blocks.{j}.attn.relative_coords_table': 'layers.{i}.blocks.{j}.attn.relative_coords_table',
            'layers.{i}.blocks.{j}.attn.relative_position_index': 'layers.{i}.blocks.{j}.attn.relative_position_index',
            'layers.{i}.blocks.{j}.attn_mask': 'layers.{i}.blocks.{j}.attn_mask',
            'layers.{d}.downsample.reduction.weight': 'layers.{d+1}.downsample.reduction.weight',
            'layers.{d}.downsample.norm.{p}': 'layers.{d+1}.downsample.norm.{p}',
            'norm3.{p}': 'norm.{p}',
        },
        head='head.fc.{p}',
        config_json='timm',
    ),
    # features_only=True: each stage is a module of its own, and there is no final norm.
    Format(
        'timm_features',
        {
            'patch_embed.proj.{p}': 'patch_embed.proj.{p}',
            'patch_embed.norm.{p}': 'patch_embed.norm.{p}',
            'mask_token': 'mask_token',
            'layers.{i}.blocks.{j}.attn.logit_scale': 'layers_{i}.blocks.{j}.attn.logit_scale',
            'layers.{i}.blocks.{j}.attn.cpb_mlp.{c}.{p}': 'layers_{i}.blocks.{j}.attn.cpb_mlp.{c}.{p}',
            'layers.{i}.blocks.{j}.attn.qkv.weight': 'layers_{i}.blocks.{j}.attn.qkv.weight',
            'layers.{i}.blocks.{j}.attn.q_bias': 'layers_{i}.blocks.{j}.attn.q_bias',
            'layers.{i}.blocks.{j}.attn.v_bias': 'layers_{i}.blocks.{j}.attn.v_bias',
            'layers.{i}.blocks.{j}.attn.proj.{p}': 'layers_{i}.blocks.{j}.attn.proj.{p}',
            'layers.{i}.blocks.{j}.norm1.{p}': 'layers_{i}.blocks.{j}.norm1.{p}',
            'layers.{i}.blocks.{j}.norm2.{p}': 'layers_{i}.blocks.{j}.norm2.{p}',
            'layers.{i}.blocks.{j}.mlp.fc1.{p}': 'layers_{i}.blocks.{j}.mlp.fc1.{p}',
            'layers.{i}.blocks.{j}.mlp.fc2.{p}': 'layers_{i}.blocks.{j}.mlp.fc2.{p}',
            'layers.{i}.blocks.{j}.attn.relative_coords_table': 'layers_{i}.blocks.{j}.attn.relative_coords_table',
            'layers.{i}.blocks.{j}.attn.relative_position_index': 'layers_{i}.blocks.{j}.attn.relative_position_index',
            'layers.{i}.blocks.{j}.attn_mask': 'layers_{i}.blocks.{j}.attn_mask',
            'layers.{d}.downsample.reduction.weight': 'layers_{d+1}.downsample.reduction.weight',
            'layers.{d}.downsample.norm.{p}': 'layers_{d+1}.downsample.norm.{p}',
        },
        head='head.fc.{p}',
        bare_lacks_norm=True,
        config_json='timm',
    ),
    Format(
        'torchvision',
        {
            'patch_embed.proj.{p}': 'features.0.0.{p}',
            'patch_embed.norm.{p}': 'features.0.2.{p}',
            'mask_token': 'mask_token',
            'layers.{i}.blocks.{j}.attn.logit_scale': 'features.{2i+1}.{j}.attn.logit_scale',
            'layers.{i}.blocks.{j}.attn.cpb_mlp.{c}.{p}': 'features.{2i+1}.{j}.attn.cpb_mlp.{c}.{p}',
            'layers.{i}.blocks.{j}.attn.qkv.weight': 'features.{2i+1}.{j}.attn.qkv.weight',
            (
                'layers.{i}.blocks.{j}.attn.q_bias',
                None,
                'layers.{i}.blocks.{j}.attn.v_bias',
            ): 'features.{2i+1}.{j}.attn.qkv.bias',
            'layers.{i}.blocks.{j}.attn.proj.{p}': 'features.{2i+1}.{j}.attn.proj.{p}',
            'layers.{i}.blocks.{j}.norm1.{p}': 'features.{2i+1}.{j}.norm1.{p}',
            'layers.{i}.blocks.{j}.norm2.{p}': 'features.{2i+1}.{j}.norm2.{p}',
            'layers.{i}.blocks.{j}.mlp.fc1.{p}': 'features.{2i+1}.{j}.mlp.0.{p}',
            'layers.{i}.blocks.{j}.mlp.fc2.{p}': 'features.{2i+1}.{j}.mlp.3.{p}',
            'layers.{i}.blocks.{j}.attn.relative_coords_table': 'features.{2i+1}.{j}.attn.relative_coords_table',
            'layers.{i}.blocks.{j}.attn.relative_position_index': 'features.{2i+1}.{j}.attn.relative_position_index',
            'layers.{i}.blocks.{j}.attn_mask': 'features.{2i+1}.{j}.attn_mask',
            'layers.{d}.downsample.reduction.weight': 'features.{2d+2}.reduction.weight',
            'layers.{d}.downsample.norm.{p}': 'features.{2d+2}.norm.{p}',
            'norm3.{p}': 'norm.{p}',
        },
        head='head.{p}',
        buffers=('relative_coords_table', 'relative_position_index'),
        flat_index=True,
        shrinks_windows=False,
    ),
)

# By name. Where two formats match a file equally well, the first is taken.
FORMATS = {fmt.name: fmt for fmt in _FORMATS}
