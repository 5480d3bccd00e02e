"""Attention for exporters: operators that every runtime has, for maps of any size.

B images, H W map size in tokens, Wh Ww window size in tokens, N = Wh * Ww, nW windows per image,
nH heads, d channels per head, C = nH * d.

Where a token goes and what is masked is arithmetic on the size of the map, without a branch, so
that one graph is valid for every size. Where that size is unknown, windows keep their configured
size, also on a smaller map: padding is masked and the position bias is a function of the offset,
so that the result is that of a smaller window.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32
from .windows import Pair, WindowGrid, size_is_unknown

# Of masked logits. Not -inf, which some runtimes do not handle in bfloat16; others are in
# [-100, 116], and exp(-1e4) is 0 in every type.
_MASKED = -1e4


def attend_exported(
    x: Tensor, weight: Tensor, qkv_bias: Tensor, scale: Tensor, bias: Tensor, grid: WindowGrid
) -> Tensor:
    """The projection to queries, keys and values, then what
    :func:`~.reference_attention.attend_reference` does, without dropout.

    One gather cuts the windows, padding and shift included, and one puts them back. The tokens are
    gathered, and each of the three is a product of its own: runtimes then neither split nor move
    a tensor of three times the size.

    Args:
        x: ``(B, H, W, C)``.
        weight, qkv_bias: ``(3 * C, C)`` and ``(3 * C,)``, of the projection.
        scale, bias: As of :class:`~.attention.AttentionConstants`.

    Returns:
        ``(B, H, W, C)``.
    """
    batch, height, width, channels = x.shape
    heads, size = scale.shape[0], bias.shape[-1]
    tokens, region = _tokens(grid, x.device)
    windows = x.flatten(1, 2).index_select(1, tokens)
    weights, biases = weight.chunk(3), (qkv_bias[:channels], None, qkv_bias[2 * channels :])
    q, k, v = (
        F.linear(windows, *each).reshape(-1, size, heads, channels // heads)
        for each in zip(weights, biases, strict=True)
    )
    q, k = _normalize(q, scale.view(-1, 1)).transpose(1, 2), _normalize(k).permute(0, 2, 3, 1)
    logits = q @ k + bias
    if region is not None:
        same = region[:, None, :, None] == region[:, None, None, :]
        mask = torch.where(same, 0.0, _MASKED).to(bias.dtype)
        if type(batch) is not int or batch != 1:
            mask = mask.repeat(batch, 1, 1, 1)
        logits = logits + mask
    attended = (logits.softmax(-1).to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)
    attended = attended.reshape(batch, -1, channels)
    return attended.index_select(1, _places(grid, x.device)).unflatten(1, (height, width))


def _normalize(x: Tensor, factor: Tensor | None = None) -> Tensor:
    """Unit vectors along the last axis, times a factor."""
    x = at_least_float32(x)
    reciprocal = (x * x).sum(-1, keepdim=True).clamp(min=1e-24).rsqrt()
    return x * (reciprocal if factor is None else reciprocal * factor)


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
