"""Layers of parameters, by `SwinTransformerV2.get_layer_depth`."""

import pytest

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.arguments import ARCHITECTURES

LAYERS = {
    'patch_embed.proj.weight': 0,
    'patch_embed.norm.bias': 0,
    'layers.0.blocks.0.norm1.weight': 1,
    'layers.0.blocks.1.mlp.fc1.bias': 2,
    'layers.0.downsample.reduction.weight': 2,
    'layers.1.blocks.0.attn.q_bias': 3,
    'layers.1.downsample.norm.weight': 4,
    'layers.2.blocks.0.attn.logit_scale': 5,
    'layers.2.blocks.5.attn.cpb_mlp.0.weight': 10,
    'layers.2.downsample.reduction.weight': 10,
    'layers.3.blocks.1.attn.proj.weight': 12,
    'norm0.weight': 13,
    'norm3.bias': 13,
}


def test_get_layer_depth_counts_blocks():
    model = SwinTransformerV2('tiny')
    for name, layer in LAYERS.items():
        assert model.get_layer_depth(name) == (layer, 14)
        assert model.get_layer_depth(f'backbone.{name}', 'backbone.') == (layer, 14)
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (13, 14)


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2), (0,)])
@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_get_layer_depth_reaches_every_layer(arch, out_indices):
    arch = {**ARCHITECTURES[arch], 'embed_dims': 48}  # All numbers of heads divide it.
    model = SwinTransformerV2(arch, out_indices=out_indices)
    depths = [model.get_layer_depth(name) for name, _ in model.named_parameters()]
    count = sum(arch['depths'][: out_indices[-1] + 1]) + 2
    assert {layer for layer, _ in depths} == set(range(count))
    assert {number for _, number in depths} == {count}


@pytest.mark.parametrize('name', ['prompt', 'backbone.norm0.bias', 'layers.4.blocks.0.norm1.bias'])
def test_get_layer_depth_refuses_other_parameters(small, name):
    with pytest.raises(ValueError, match='is in no layer of a SwinTransformerV2'):
        small().get_layer_depth(name)
