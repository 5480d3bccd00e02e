"""Checkpoint files in the true formats, made from random weights, and how tests load them."""

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from tests.helpers.models import SMALL_ARCH, randomize_parameters
from tests.parity.recorded import ARCH

# Settings for the released checkpoints.
W8, W16, W12 = [8] * 4, [16, 16, 16, 8], [12, 12, 12, 6]


def pairs(sizes):
    """One (height, width) per stage."""
    return [(size, size) if isinstance(size, int) else size for size in sizes]


def windows_of(backbone):
    """The pretrained window size of each stage."""
    return [stage.pretrained_window for stage in backbone.layers]


def random_model(pretrained_window_sizes=8, seed=0, **kwargs):
    """A small backbone with random weights."""
    return randomize_parameters(
        SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes=pretrained_window_sizes, **kwargs),
        seed,
    )


def load(checkpoint, setting=8, arch=SMALL_ARCH, init_cfg=None, **kwargs):
    """A backbone with the weights of a checkpoint, through its init_cfg."""
    model = SwinTransformerV2(
        arch,
        pretrained_window_sizes=setting,
        init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint), **(init_cfg or {})),
        **kwargs,
    )
    model.init_weights()
    return model


def assert_loaded(model, original, new=('norm0', 'norm1', 'norm2')):
    """All parameters of a model equal the original's, except those that are new."""
    expected = original.state_dict()
    for key, value in model.state_dict().items():
        if not key.startswith(new):
            assert torch.equal(value, expected[key]), key


def assert_refused(path, error, message, arch=ARCH, **init_cfg):
    """Loading raises the error, which names the file and the cause; the model stays as it was."""
    model = randomize_parameters(
        SwinTransformerV2(
            arch,
            window_size=4,
            pretrained_window_sizes=4,
            init_cfg=dict(type='Pretrained', checkpoint=str(path), **init_cfg),
        )
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=message) as caught:
        model.init_weights()
    assert type(caught.value) is error
    assert str(path) in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert windows_of(model) == [(4, 4)] * 4


def official_state(model, window=None):
    """What microsoft/Swin-Transformer saves: a classifier, its buffers among the weights.

    `window` is the one that it last ran with, if not the one its position bias was trained with.
    """
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith(('norm0.', 'norm1.', 'norm2.')):
            continue
        state[key.replace('norm3.', 'norm.') if key.startswith('norm3.') else key] = value.clone()
    for i, stage in enumerate(model.layers):
        height, width = window or stage.pretrained_window
        tokens = height * width
        # Written out, not computed by the package: the loader reads the window from the tables.
        axes = [
            8 * torch.arange(1 - w, w) / (p - 1)
            for w, p in zip((height, width), stage.pretrained_window, strict=True)
        ]
        table = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)
        table = table.sign() * torch.log2(1 + table.abs()) / 3
        for j in range(len(stage.blocks)):
            name = f'layers.{i}.blocks.{j}'
            state[f'{name}.attn.relative_coords_table'] = table[None]
            state[f'{name}.attn.relative_position_index'] = torch.zeros(tokens, tokens).long()
            if j % 2:
                state[f'{name}.attn_mask'] = torch.zeros(4, tokens, tokens)
    state['head.weight'] = torch.zeros(1000, model.num_features[-1])
    state['head.bias'] = torch.zeros(1000)
    return state


def save_official(model, path):
    """Write the official file of a model's weights and return its path as a string."""
    torch.save({'model': official_state(model)}, path)
    return str(path)


def state_without_tables(model):
    """An official state that records no window sizes."""
    return {
        key: value
        for key, value in official_state(model).items()
        if not key.endswith('relative_coords_table')
    }


def headless_state(model):
    """The parameters of a backbone that a headless model of another library has."""
    return {
        key: value
        for key, value in model.state_dict().items()
        if key.startswith(('patch_embed', 'layers', 'norm3'))
    }
