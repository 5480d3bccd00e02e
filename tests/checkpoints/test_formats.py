"""The tables of names: each library's own names, and every table complete and reversible."""

import pytest
import torch

from swinv2_backbone.checkpoints import FORMATS, from_backbone, to_backbone
from swinv2_backbone.checkpoints.architecture import expected_parameters
from tests.helpers.models import SMALL_ARCH

# Names as they stand in files of the libraries: CPB network, second layer of the MLP, merging
# after the first stage, final norm, classifier ('' where its models have none). A new format is one
# more row.
EXAMPLES = {
    'swinv2_backbone': (
        'backbone.layers.2.blocks.1.attn.cpb_mlp.0.weight',
        'backbone.layers.2.blocks.1.mlp.fc2.bias',
        'backbone.layers.0.downsample.reduction.weight',
        'backbone.norm3.weight',
        'head.fc.bias',
    ),
    'official': (
        'layers.2.blocks.1.attn.cpb_mlp.0.weight',
        'layers.2.blocks.1.mlp.fc2.bias',
        'layers.0.downsample.reduction.weight',
        'norm.weight',
        'head.bias',
    ),
    'mmpretrain': (
        'backbone.stages.2.blocks.1.attn.w_msa.cpb_mlp.0.weight',
        'backbone.stages.2.blocks.1.ffn.layers.1.bias',
        'backbone.stages.1.downsample.reduction.weight',
        'backbone.norm3.weight',
        'head.fc.bias',
    ),
    'hf': (
        'swinv2.encoder.layers.2.blocks.1.attention.self.continuous_position_bias_mlp.0.weight',
        'swinv2.encoder.layers.2.blocks.1.output.dense.bias',
        'swinv2.encoder.layers.0.downsample.reduction.weight',
        'swinv2.layernorm.weight',
        'classifier.bias',
    ),
    'timm': (
        'layers.2.blocks.1.attn.cpb_mlp.0.weight',
        'layers.2.blocks.1.mlp.fc2.bias',
        'layers.1.downsample.reduction.weight',
        'norm.weight',
        'head.fc.bias',
    ),
    'timm_features': (
        'layers_2.blocks.1.attn.cpb_mlp.0.weight',
        'layers_2.blocks.1.mlp.fc2.bias',
        'layers_1.downsample.reduction.weight',
        '',
        '',
    ),
    'torchvision': (
        'features.5.1.attn.cpb_mlp.0.weight',
        'features.5.1.mlp.3.bias',
        'features.2.reduction.weight',
        'norm.weight',
        'head.bias',
    ),
}
OURS = (
    'layers.2.blocks.1.attn.cpb_mlp.0.weight',
    'layers.2.blocks.1.mlp.fc2.bias',
    'layers.0.downsample.reduction.weight',
    'norm3.weight',
    'head.bias',
)


def random_classifier(name):
    """Weights and head of a classifier of a library, under our names."""
    final_norm = bool(EXAMPLES[name][3])
    state = {
        key: torch.randn(value.shape)
        for key, value in expected_parameters(SMALL_ARCH).items()
        if not key.startswith('norm') or (final_norm and key.startswith('norm3'))
    }
    head = {'head.weight': torch.randn(10, 128), 'head.bias': torch.randn(10)}
    return state, head if EXAMPLES[name][4] else {}


@pytest.mark.parametrize('name', FORMATS)
def test_names_are_the_librarys_own(name):
    state, head = random_classifier(name)
    theirs = from_backbone(state, head, FORMATS[name])
    for ours, expected in zip(OURS, EXAMPLES[name], strict=True):
        if expected:
            value = (state | head)[ours]
            if name != 'mmpretrain' or 'reduction' not in ours:  # whose columns are reordered
                assert torch.equal(theirs[expected], value)
            assert theirs[expected].shape == value.shape


@pytest.mark.parametrize('name', FORMATS)
def test_every_parameter_has_its_own_name_and_comes_back(name):
    state, head = random_classifier(name)
    theirs = from_backbone(state, head, FORMATS[name])
    back = to_backbone(theirs, 'x')
    assert back.format == name
    assert back.state.keys() == state.keys()
    assert all(torch.equal(back.state[key], value) for key, value in state.items())
    assert back.head.keys() == head.keys()
    assert all(torch.equal(back.head[key], value) for key, value in head.items())


def test_mmpretrain_merges_patches_channel_by_channel():
    """nn.Unfold: for each channel the four neighbors by row, then column."""
    state, head = random_classifier('mmpretrain')
    key = 'layers.0.downsample.reduction.weight'
    ours = state[key]
    theirs = from_backbone(state, head, FORMATS['mmpretrain'])[
        'backbone.stages.1.downsample.reduction.weight'
    ]
    channels = ours.shape[1] // 4
    for c in range(channels):
        for row in range(2):
            for column in range(2):
                # Ours: (0, 0), (1, 0), (0, 1), (1, 1) as (row, column), all channels of each.
                mine = ours[:, (2 * column + row) * channels + c]
                assert torch.equal(theirs[:, 4 * c + 2 * row + column], mine)


def test_hf_has_query_key_and_value_apart():
    state, head = random_classifier('hf')
    theirs = from_backbone(state, head, FORMATS['hf'])
    block = 'swinv2.encoder.layers.3.blocks.0.attention.self'
    parts = [theirs[f'{block}.{part}.weight'] for part in ('query', 'key', 'value')]
    assert torch.equal(torch.cat(parts), state['layers.3.blocks.0.attn.qkv.weight'])
    assert torch.equal(theirs[f'{block}.query.bias'], state['layers.3.blocks.0.attn.q_bias'])
    assert f'{block}.key.bias' not in theirs


def test_torchvision_has_a_bias_of_the_keys_that_is_zero():
    state, head = random_classifier('torchvision')
    bias = from_backbone(state, head, FORMATS['torchvision'])['features.1.0.attn.qkv.bias']
    q, k, v = bias.chunk(3)
    assert torch.equal(q, state['layers.0.blocks.0.attn.q_bias'])
    assert torch.equal(v, state['layers.0.blocks.0.attn.v_bias'])
    assert not k.any()


def test_every_format_has_an_example():
    assert EXAMPLES.keys() == FORMATS.keys()
