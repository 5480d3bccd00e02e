"""Overlapping tiles: what they cover."""

import numpy as np
import pytest

pytest.importorskip('hypothesis')
import itertools

from hypothesis import given
from hypothesis import strategies as st

from tools.inference.tiles import spans, tiles_of


@given(st.integers(1, 5000), st.integers(2, 1500), st.data())
def test_spans_cover_an_axis_once_and_keep_half_of_the_overlap(size, tile, data):
    overlap = data.draw(st.integers(1, tile - 1))
    found = spans(size, tile, overlap)
    assert [each.own_end for each in found] == [*(each.own_start for each in found[1:]), size]
    assert found[0].start == found[0].own_start == 0
    assert found[-1].end == size
    assert all(each.end - each.start <= tile for each in found)
    for left, right in itertools.pairwise(found):
        assert left.start < right.start
        # The cut is at least half of the overlap away from both borders, rounded.
        assert left.end - left.own_end >= overlap // 2
        assert right.own_start - right.start >= overlap // 2


def test_the_last_tile_reaches_back_in_steps_of_the_attention_windows():
    # It would begin at 1536 and have 264 pixels; 512 more fit in.
    assert [each[:2] for each in spans(1800, 1024, 256)] == [(0, 1024), (768, 1792), (1024, 1800)]
    assert [each[2:] for each in spans(1800, 1024, 256)] == [(0, 896), (896, 1408), (1408, 1800)]


def test_tiles_are_a_grid_and_own_every_pixel_once():
    owners = np.zeros((70, 50), int)
    numbered = np.arange(70 * 50).reshape(70, 50)
    for tile in tiles_of(70, 50, 32, 8):
        owners[tile.own] += 1
        assert (numbered[tile.outer][tile.own_inside] == numbered[tile.own]).all()
    assert (owners == 1).all()
    assert len(tiles_of(70, 50, None, 8)) == 1
