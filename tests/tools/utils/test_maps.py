"""tools/utils/maps.py: what its colors mean, and the position bias."""

import torch

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers.position_bias import position_bias
from tests.helpers.models import SMALL_ARCH, randomize_parameters
from tools.utils.maps import center_bias, colors


def test_a_color_means_the_same_in_all_maps():
    maps = [torch.randn(16, 6, 8), torch.randn(16, 6, 8)]
    maps[1][:, :3] = maps[0][:, 3:]
    first, second = colors(maps)
    assert first.shape == (6, 8, 3)
    assert torch.equal(second[:3], first[3:])
    assert first.min() == 0
    assert second.max() == 1


def test_center_bias_is_the_bias_of_the_center_token():
    model = randomize_parameters(SwinTransformerV2(SMALL_ARCH)).eval()
    stage = model.layers[2]
    shown = center_bias(model, 2, 1, (5, 4))
    with torch.no_grad():
        bias = position_bias(stage.blocks[1].attn.cpb_mlp, (5, 4), (8, 8))
    assert shown.shape == (4, 5, 4)
    for row in range(5):
        for column in range(4):  # The center is in row 2, column 2.
            assert torch.equal(shown[:, row, column], bias[:, 2 * 4 + 2, row * 4 + column])
