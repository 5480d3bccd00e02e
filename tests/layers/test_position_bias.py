"""Log-spaced coordinates and the continuous position bias."""

import math

import pytest
import torch

from swinv2_backbone.layers.position_bias import (
    make_cpb_mlp,
    position_bias,
    relative_coords,
    relative_index,
)
from tests.helpers.models import randomize_parameters
from tests.helpers.tolerance import assert_equal_to_rounding


def test_coordinates_by_hand():
    coords = relative_coords((3, 2), (8, 8))
    assert coords.shape == (5, 3, 2)
    assert coords[2, 1].tolist() == [0, 0]
    assert coords[4, 0, 0].item() == pytest.approx(math.log2(1 + 16 / 7) / 3)
    assert coords[4, 0, 1].item() == pytest.approx(-math.log2(1 + 8 / 7) / 3)


def test_the_largest_pretrained_offset_is_one():
    coords = relative_coords((16, 16), (8, 8))
    assert coords[15 + 7, 15 - 7].tolist() == pytest.approx([math.log2(9) / 3, -math.log2(9) / 3])


def test_coordinates_of_no_window_are_refused():
    with pytest.raises(ValueError, match=r'at least 1 token, got window=\(0, 8\)'):
        relative_coords((0, 8), (8, 8))


def test_index_finds_the_offset():
    window = (3, 4)
    index = relative_index(window)
    coords = relative_coords(window, (8, 8)).flatten(0, 1)
    for query in range(12):
        for key in range(12):
            d_row, d_col = query // 4 - key // 4, query % 4 - key % 4
            signs = coords[index[query, key]].sign().tolist()
            assert signs == [(d_row > 0) - (d_row < 0), (d_col > 0) - (d_col < 0)]


def test_bias_depends_on_the_offset_alone():
    bias = position_bias(randomize_parameters(make_cpb_mlp(3)), (4, 6), (8, 8))
    assert bias.shape == (3, 24, 24)
    assert bias.std() > 0.5
    by_cell = bias.reshape(3, 4, 6, 4, 6)
    # The same entries of one table.
    assert torch.equal(by_cell[:, 1:, 1:, 1:, 1:], by_cell[:, :-1, :-1, :-1, :-1])


def test_rectangular_and_smaller_windows_are_parts_of_larger_ones():
    cpb_mlp = randomize_parameters(make_cpb_mlp(2)).double()
    whole = position_bias(cpb_mlp, (9, 9), (8, 8)).reshape(2, 9, 9, 9, 9)
    part = position_bias(cpb_mlp, (4, 7), (8, 8)).reshape(2, 4, 7, 4, 7)
    assert_equal_to_rounding(part, whole[:, :4, :7, :4, :7])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_bias_is_computed_in_float32_under_autocast(dtype):
    cpb_mlp = randomize_parameters(make_cpb_mlp(2)).to(dtype)
    expected = position_bias(cpb_mlp.float(), (16, 16), (8, 8))
    with torch.autocast('cpu', torch.bfloat16):
        bias = position_bias(cpb_mlp.to(dtype), (16, 16), (8, 8))
    assert bias.dtype == torch.float32
    assert torch.equal(bias, expected)
