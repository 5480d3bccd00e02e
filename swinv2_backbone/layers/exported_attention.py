"""Attention for exporters: operators that every runtime has, for maps of any size.

B images, H W map size in tokens, Wh Ww window size in tokens, N = Wh * Ww, nW windows per image,
nH heads, d channels per head, C = nH * d.

Where a token goes and what is masked is arithmetic on the size of the map, without a branch, so
that one graph is valid for every size. Where that size is unknown, windows keep their configured
size, also on a smaller map: padding is masked and the position bias is a function of the offset,
so that the result is that of a smaller window.
"""

import torch
from torch import Tensor

from .precision import at_least_float32
from .windows import Pair, WindowGrid, size_is_unknown

# Of masked logits. Not -inf, which some runtimes do not handle in bfloat16; others are in
# [-100, 116], and exp(-1e4) is 0 in every type.
_MASKED = -1e4


def attend_exported(qkv: Tensor, scale: Tensor, bias: Tensor, grid: WindowGrid) -> Tensor:
    """As :func:`~.reference_attention.attend_reference`, without dropout.

    One gather cuts the windows, padding and shift included, and one puts them back.
    """
    batch, height, width, channels = qkv.shape
    heads, size = scale.shape[0], bias.shape[-1]
    tokens, region = _tokens(grid, qkv.device)
    parts = qkv.flatten(1, 2).index_select(1, tokens).chunk(3, -1)
    q, k, v = (x.reshape(-1, size, heads, channels // (3 * heads)).transpose(1, 2) for x in parts)
    logits = (_normalize(q) * scale) @ _normalize(k).transpose(-2, -1)
    if region is None:
        logits = logits + bias
    else:
        same = region[:, None, :, None] == region[:, None, None, :]
        mask = torch.where(same, 0.0, _MASKED).to(bias.dtype)
        if type(batch) is not int or batch != 1:
            mask = mask.repeat(batch, 1, 1, 1)
        logits = logits + bias + mask
    attended = (logits.softmax(-1).to(v.dtype) @ v).transpose(1, 2)
    attended = attended.reshape(batch, -1, channels // 3)
    return attended.index_select(1, _places(grid, qkv.device)).unflatten(1, (height, width))


def _normalize(x: Tensor) -> Tensor:
    x = at_least_float32(x)
    return x * x.square().sum(-1, keepdim=True).clamp(min=1e-24).rsqrt()


def _num_windows(grid: WindowGrid) -> Pair:
    rows, cols = ((s + w - 1) // w for s, w in zip(grid.size, grid.window, strict=True))
    return rows, cols


def _shift(grid: WindowGrid) -> Pair:
    """The grid's shift, without a branch: 0 along an axis that one window covers."""
    if not grid.shifted:
        return 0, 0
    counts = _num_windows(grid)
    rows, cols = (w // 2 * (1 - 1 // n) for w, n in zip(grid.window, counts, strict=True))
    return rows, cols


def _masked(grid: WindowGrid) -> bool:
    if any(map(size_is_unknown, grid.size)):
        return True
    return grid.padded_size != grid.size or any(grid.shift)


def _tokens(grid: WindowGrid, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The token of each position of the windows, and what it is masked by.

    Returns:
        int64 ``(nW * N,)``, indices of the flattened map; padded positions hold any index of it.
        int64 ``(nW, N)``, the region of each position, which attends to keys of its own; None if
        there is only one region.
    """
    (height, width), (rows, cols) = grid.size, grid.window
    (down, right), (shift_rows, shift_cols) = _num_windows(grid), _shift(grid)
    size = rows * cols
    position = torch.arange(down * right * size, device=device)
    window, place = position // size, position % size
    row = window // right * rows + place // cols + shift_rows
    col = (window - window // right * right) * cols + place % cols + shift_cols
    row_wrapped, col_wrapped = row >= down * rows, col >= right * cols
    row = torch.where(row_wrapped, row - down * rows, row)
    col = torch.where(col_wrapped, col - right * cols, col)
    tokens = row.clamp(max=height - 1) * width + col.clamp(max=width - 1)
    if not _masked(grid):
        return tokens, None
    region = 2 * row_wrapped.long() + col_wrapped.long()
    region = torch.where((row < height) & (col < width), region, 4)
    return tokens, region.view(-1, size)


def _places(grid: WindowGrid, device: torch.device) -> Tensor:
    """The position among the windows of each token: int64 ``(H * W,)``, the inverse of _tokens."""
    (height, width), (rows, cols) = grid.size, grid.window
    (down, right), (shift_rows, shift_cols) = _num_windows(grid), _shift(grid)
    token = torch.arange(height * width, device=device)
    row = token // width
    col = token - row * width - shift_cols
    row = row - shift_rows
    row = torch.where(row < 0, row + down * rows, row)
    col = torch.where(col < 0, col + right * cols, col)
    window = row // rows * right + col // cols
    return window * (rows * cols) + row % rows * cols + col % cols
