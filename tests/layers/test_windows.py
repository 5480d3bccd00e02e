"""Windows: merging undoes splitting, and the attention mask equals a brute-force one."""

import itertools

import pytest
import torch

from swinv2_backbone.layers.windows import WindowGrid, window_partition, window_reverse

MAPS = [
    ((8, 8), (8, 8)),
    ((16, 24), (8, 8)),
    ((9, 17), (8, 8)),
    ((5, 23), (8, 4)),
    ((1, 1), (8, 8)),
    ((7, 3), (3, 5)),
    ((4, 9), (1, 2)),
    ((13, 20), (4, 12)),
]


def test_reverse_undoes_partition():
    x = torch.randn(2, 12, 8, 3)
    windows = window_partition(x, (4, 2))
    assert windows.shape == (2 * 3 * 4, 8, 3)
    assert torch.equal(windows[5], x[0, 4:8, 2:4].reshape(8, 3))
    assert torch.equal(window_reverse(windows, (4, 2), (12, 8)), x)


@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize(('size', 'window'), MAPS)
def test_merge_undoes_split(size, window, shifted):
    grid = WindowGrid.for_map(size, window, shifted)
    x = torch.randn(2, *size, 3)
    windows = grid.split(x)
    assert windows.shape[1] == grid.window[0] * grid.window[1]
    assert torch.equal(grid.merge(windows), x)


@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize(('size', 'window'), MAPS)
def test_attention_mask_equals_brute_force(size, window, shifted):
    grid = WindowGrid.for_map(size, window, shifted)
    positions = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing='ij'), -1)[None]
    cells = grid.split(positions + 1) - 1  # pads become (-1, -1)
    attn_mask = grid.attention_mask(torch.device('cpu'))
    if attn_mask is None:
        attn_mask = torch.ones(len(cells), cells.shape[1], cells.shape[1], dtype=torch.bool)
    for index, window_cells in enumerate(cells.tolist()):
        for (i, query), (j, key) in itertools.product(enumerate(window_cells), repeat=2):
            valid = query != [-1, -1] and key != [-1, -1]
            # Within one window, and in the image no farther apart than the window is long.
            near = all(abs(q - k) < w for q, k, w in zip(query, key, grid.window, strict=True))
            if valid:
                assert attn_mask[index, i, j] == near
            elif key == [-1, -1]:
                assert not attn_mask[index, i, j]


@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize(('size', 'window'), MAPS)
def test_groups_equal_the_padded_rolled_and_cut_map(size, window, shifted):
    grid = WindowGrid.for_map(size, window, shifted)
    places = torch.arange(2 * size[0] * size[1]).view(2, *size, 1)
    cut = grid.split(places + 1).squeeze(-1) - 1  # -1 at the padding
    attn_mask = grid.attention_mask(torch.device('cpu'))
    expected = {}
    for i, tokens in enumerate(cut.tolist()):
        mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
        expected[tuple(tokens)] = mask if attn_mask is None else attn_mask[i % len(attn_mask)]
    groups = grid.groups(2, torch.device('cpu'))
    for group in groups:
        valid = torch.zeros(group.tokens.shape[1], dtype=torch.bool)
        valid[slice(None) if group.valid is None else group.valid] = True
        for tokens in torch.where(valid, group.tokens, -1).tolist():
            mask = expected.pop(tuple(tokens))
            assert torch.equal(group.attn_mask, mask) if group.attn_mask is not None else mask.all()
        assert group.tokens.min() >= 0
    assert not expected, 'every window is in a group'
    assert len(groups) <= 9
    assert grid.groups(2, torch.device('cpu')) is groups


@pytest.mark.parametrize(('size', 'window'), MAPS)
def test_every_query_has_a_key(size, window):
    attn_mask = WindowGrid.for_map(size, window, shifted=True).attention_mask(torch.device('cpu'))
    assert attn_mask is None or attn_mask.any(-1).all()


def test_window_and_shift_are_decided_per_axis():
    grid = WindowGrid.for_map((6, 20), (8, 8), shifted=True)
    assert (grid.window, grid.shift, grid.padded_size) == ((6, 8), (0, 4), (6, 24))
    grid = WindowGrid.for_map((8, 9), (8, 9), shifted=True)
    assert grid.shift == (0, 0)
    assert grid.attention_mask(torch.device('cpu')) is None


def test_masks_are_shared_and_usable_after_inference_mode():
    grid = WindowGrid.for_map((11, 13), (8, 8), shifted=True)
    with torch.inference_mode():
        attn_mask = grid.attention_mask(torch.device('cpu'))
    assert grid.attention_mask(torch.device('cpu')) is attn_mask
    assert not attn_mask.is_inference()
