"""MLP and block."""

import torch

from swinv2_backbone.layers.attention import attention_constants
from swinv2_backbone.layers.blocks import Mlp, SwinTransformerBlock
from swinv2_backbone.layers.windows import WindowGrid
from tests.helpers.models import randomize_parameters


def test_block_with_all_paths_dropped_is_the_identity():
    block = randomize_parameters(SwinTransformerBlock(8, 2, drop_path=1.0)).train()
    x = torch.randn(2, 5, 7, 8)
    grid = WindowGrid.for_map((5, 7), (4, 4), shifted=True)
    [constants] = attention_constants([block.attn], (4, 4), (4, 4))
    assert torch.equal(block(x, grid, constants), x)


def test_mlp_shape_and_dropout():
    mlp = Mlp(4, 16, drop=1.0)
    assert torch.equal(mlp.train()(torch.randn(2, 3, 4)), torch.zeros(2, 3, 4))
    assert mlp.eval()(torch.randn(2, 3, 4)).any()
