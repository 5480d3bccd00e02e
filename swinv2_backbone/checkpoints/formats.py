"""What each library calls the parameters of SwinV2, one declarative map a format.

Ours are the official repository's names, with an output norm ``norm{n}`` a stage. The notation is
that of :mod:`.key_rules`; nothing is written down a second time for the way back.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from .key_rules import Columns, Format, Rule

OFFICIAL_BUFFERS = ('relative_coords_table', 'relative_position_index', 'attn_mask')
# Parameters and buffers of a block, of a merging and of the rest, as ours are called.
_BLOCK = (
    'attn.logit_scale',
    'attn.cpb_mlp.{c}.{p}',
    'attn.qkv.weight',
    'attn.q_bias',
    'attn.v_bias',
    'attn.proj.{p}',
    'norm1.{p}',
    'norm2.{p}',
    'mlp.fc1.{p}',
    'mlp.fc2.{p}',
    'attn.relative_coords_table',
    'attn.relative_position_index',
    'attn_mask',
)
_MERGING = ('reduction.weight', 'norm.{p}')
_STEM = ('patch_embed.proj.{p}', 'patch_embed.norm.{p}', 'mask_token')
_SAME: Mapping = MappingProxyType({})  # Nothing is called differently.


def _nested(ours: str, theirs: str, names: Iterable[str], renamed: Mapping) -> dict:
    """`names` inside a module of ours and one of theirs; what is not renamed keeps its name."""

    def within(path, name):
        if isinstance(name, tuple):
            return tuple(part and path + part for part in name)
        return Columns(path + name.name, name.order) if isinstance(name, Columns) else path + name

    joined = {part for name in renamed if isinstance(name, tuple) for part in name}
    pairs = {name: name for name in names if name not in joined} | renamed
    return {within(ours, mine): within(theirs, other) for mine, other in pairs.items()}


def _format(
    name: str,
    *,
    block_path: str,
    merging_path: str,
    head: str,
    stem: Mapping = _SAME,
    block: Mapping = _SAME,
    merging: Mapping = _SAME,
    norms: Mapping = _SAME,
    older: Mapping = _SAME,
    **kwargs,
) -> Format:
    """A format, from what it calls things differently; `older` names are read but not written."""
    pairs = (
        _nested('', '', _STEM, stem)
        | _nested('layers.{i}.blocks.{j}.', block_path, _BLOCK, block)
        | _nested('layers.{d}.downsample.', merging_path, _MERGING, merging)
        | norms
    )
    return Format(
        name,
        tuple(Rule.of(*pair) for pair in (*pairs.items(), *older.items())),
        Rule.of('head.{p}', head),
        **kwargs,
    )


def _unfold_order(columns: int) -> Tensor:
    """Merging by nn.Unfold: theirs is (channel, row, column), ours (column, row, channel)."""
    ours = torch.arange(columns).view(2, 2, -1)
    return ours.permute(2, 1, 0).flatten()


_OFFICIAL = dict(block_path='layers.{i}.blocks.{j}.', merging_path='layers.{d}.downsample.')
_TIMM = dict(block_path='layers.{i}.blocks.{j}.', merging_path='layers.{d+1}.downsample.')
_LAST_NORM = {'norm3.{p}': 'norm.{p}'}
_TABLE_AND_INDEX = frozenset(OFFICIAL_BUFFERS[:2])

OWN = _format(
    'swinv2_backbone',
    **_OFFICIAL,
    norms={'norm{n}.{p}': 'norm{n}.{p}'},
    prefix='backbone.',
    head='head.fc.{p}',
    wrapper='state_dict',
    bare_lacks_norm=True,
)

# SimMIM's released files call the CPB network by an older name; Microsoft's utils_simmim.py
# renames it on loading.
OFFICIAL = _format(
    'official',
    **_OFFICIAL,
    norms=_LAST_NORM,
    head='head.{p}',
    older={
        'layers.{i}.blocks.{j}.attn.cpb_mlp.{c}.{p}': 'layers.{i}.blocks.{j}.attn.rpe_mlp.{c}.{p}'
    },
    buffers=frozenset(OFFICIAL_BUFFERS),
    wrapper='model',
)

MMPRETRAIN = _format(
    'mmpretrain',
    prefix='backbone.',
    head='head.fc.{p}',
    stem={'patch_embed.proj.{p}': 'patch_embed.projection.{p}'},
    block_path='stages.{i}.blocks.{j}.',
    block={
        'attn.logit_scale': 'attn.w_msa.logit_scale',
        'attn.cpb_mlp.{c}.{p}': 'attn.w_msa.cpb_mlp.{c}.{p}',
        'attn.qkv.weight': 'attn.w_msa.qkv.weight',
        'attn.q_bias': 'attn.w_msa.q_bias',
        'attn.v_bias': 'attn.w_msa.v_bias',
        'attn.proj.{p}': 'attn.w_msa.proj.{p}',
        'attn.relative_coords_table': 'attn.w_msa.relative_coords_table',
        'attn.relative_position_index': 'attn.w_msa.relative_position_index',
        'mlp.fc1.{p}': 'ffn.layers.0.0.{p}',
        'mlp.fc2.{p}': 'ffn.layers.1.{p}',
    },
    merging_path='stages.{d+1}.downsample.',
    merging={'reduction.weight': Columns('reduction.weight', _unfold_order)},
    norms={'norm{n}.{p}': 'norm{n}.{p}'},
    buffers=_TABLE_AND_INDEX,
    wrapper='state_dict',
)

HF = _format(
    'hf',
    prefix='swinv2.',
    head='classifier.{p}',
    stem={
        'patch_embed.proj.{p}': 'embeddings.patch_embeddings.projection.{p}',
        'patch_embed.norm.{p}': 'embeddings.norm.{p}',
        'mask_token': 'embeddings.mask_token',
    },
    block_path='encoder.layers.{i}.blocks.{j}.',
    block={
        'attn.logit_scale': 'attention.self.logit_scale',
        'attn.cpb_mlp.{c}.{p}': 'attention.self.continuous_position_bias_mlp.{c}.{p}',
        'attn.qkv.weight': (
            'attention.self.query.weight',
            'attention.self.key.weight',
            'attention.self.value.weight',
        ),
        'attn.q_bias': 'attention.self.query.bias',
        'attn.v_bias': 'attention.self.value.bias',
        'attn.proj.{p}': 'attention.output.dense.{p}',
        'attn.relative_coords_table': 'attention.self.relative_coords_table',
        'attn.relative_position_index': 'attention.self.relative_position_index',
        'norm1.{p}': 'layernorm_before.{p}',
        'norm2.{p}': 'layernorm_after.{p}',
        'mlp.fc1.{p}': 'intermediate.dense.{p}',
        'mlp.fc2.{p}': 'output.dense.{p}',
    },
    merging_path='encoder.layers.{d}.downsample.',
    norms={'norm3.{p}': 'layernorm.{p}'},
    bare_lacks_norm=True,
)

TIMM = _format('timm', **_TIMM, norms=_LAST_NORM, head='head.fc.{p}')

# features_only=True: each stage is a module of its own, and nothing follows the last.
TIMM_FEATURES = _format(
    'timm_features',
    block_path='layers_{i}.blocks.{j}.',
    merging_path='layers_{d+1}.downsample.',
    head='head.fc.{p}',
    bare_lacks_norm=True,
)

TORCHVISION = _format(
    'torchvision',
    head='head.{p}',
    stem={'patch_embed.proj.{p}': 'features.0.0.{p}', 'patch_embed.norm.{p}': 'features.0.2.{p}'},
    block_path='features.{2i+1}.{j}.',
    block={
        ('attn.q_bias', None, 'attn.v_bias'): 'attn.qkv.bias',
        'mlp.fc1.{p}': 'mlp.0.{p}',
        'mlp.fc2.{p}': 'mlp.3.{p}',
    },
    merging_path='features.{2d+2}.',
    norms=_LAST_NORM,
    buffers=_TABLE_AND_INDEX,
    flat_index=True,
    shrinks=False,
)

# Where two know a file equally well, the first is taken.
FORMATS = {
    fmt.name: fmt for fmt in (OWN, OFFICIAL, MMPRETRAIN, HF, TIMM, TIMM_FEATURES, TORCHVISION)
}
