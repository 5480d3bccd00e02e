"""Attention for exporters: operators that every runtime has, for maps of one size or of any.

B images, H W map size in tokens, Wh Ww window size in tokens, N = Wh * Ww, nW windows per image,
n windows of a group, nH heads, d channels per head, C = nH * d.

Where the size of the map is unknown, where a token goes and what is masked is arithmetic on the
size, without a branch, so that one graph is valid for every size. Windows then keep their
configured size, also on a smaller map: padding is masked and the position bias is a function of the
offset, so that the result is that of a smaller window.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32
from .windows import Pair, WindowGrid, WindowGroup, size_is_unknown

# Of masked logits. Not -inf, which some runtimes do not handle in bfloat16; others are in
# [-100, 116], and exp(-1e4) is 0 in every type.
_MASKED = -1e4


def attend_exported(
    x: Tensor, weight: Tensor, qkv_bias: Tensor, scale: Tensor, bias: Tensor, grid: WindowGrid
) -> Tensor:
    """The projection to queries, keys and values, then what
    :func:`~.reference_attention.attend_reference` does, without dropout.

    The attention is torch's SDPA, for which runtimes have one operator, once for each group of
    windows with one mask: bias and mask are then one constant. One gather cuts the windows of a
    group, padding and shift included, and one puts all back.

    Args:
        x: ``(B, H, W, C)``.
        weight, qkv_bias: ``(3 * C, C)`` and ``(3 * C,)``, of the projection.
        scale, bias: As of :class:`~.attention.AttentionConstants`.

    Returns:
        ``(B, H, W, C)``.
    """
    if any(map(size_is_unknown, grid.size)):
        return attend_any_size(x, weight, qkv_bias, scale, bias, grid)
    tokens, parts = x.flatten(1, 2), []
    groups = grid.groups(1, x.device)
    for group in groups:
        mask = bias
        if group.attn_mask is not None:
            mask = bias.masked_fill(~group.attn_mask, _MASKED)
        windows = tokens.index_select(1, group.tokens.flatten())
        q, k, v = _project(windows, weight, qkv_bias, scale, bias.shape[-1])
        q, k, v = (each.transpose(1, 2) for each in (q, k, v.to(q.dtype)))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None], scale=1.0)
        parts.append(attended.transpose(1, 2).reshape(windows.shape))
    attended = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
    return attended.index_select(1, _places_in(groups, tokens.shape[1])).view_as(x).to(x.dtype)


def _places_in(groups: Sequence[WindowGroup], count: int) -> Tensor:
    """The position of each of `count` tokens among the windows of all groups: int64."""
    tokens, positions, first = [], [], 0
    for group in groups:
        position = first + torch.arange(group.tokens.numel()).view_as(group.tokens)
        first += group.tokens.numel()
        kept = slice(None) if group.valid is None else group.valid
        tokens.append(group.tokens[:, kept].flatten())
        positions.append(position.to(group.tokens.device)[:, kept].flatten())
    # (Not empty(): what is made of that, ONNX's optimizer does not take for a constant.)
    places = torch.arange(count, device=groups[0].tokens.device)
    return places.index_copy(0, torch.cat(tokens), torch.cat(positions))


def _project(
    windows: Tensor, weight: Tensor, qkv_bias: Tensor, scale: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit queries times `scale`, unit keys, and values of windows ``(B, n * N, C)``.

    Each is a product of its own: runtimes then neither split nor move a tensor of three times the
    size.

    Args:
        size: Tokens per window, N.

    Returns:
        ``(B * n, N, nH, d)`` each.
    """
    channels, heads = windows.shape[-1], scale.shape[0]
    biases = qkv_bias[:channels], None, qkv_bias[2 * channels :]
    q, k, v = (
        F.linear(windows, *each).reshape(-1, size, heads, channels // heads)
        for each in zip(weight.chunk(3), biases, strict=True)
    )
    return _normalize(q, scale.view(-1, 1)), _normalize(k), v


def attend_any_size(
    x: Tensor, weight: Tensor, qkv_bias: Tensor, scale: Tensor, bias: Tensor, grid: WindowGrid
) -> Tensor:
    """As :func:`attend_exported`, for maps of any size, with a mask for each window."""
    batch, height, width, channels = x.shape
    tokens, region = _tokens(grid, x.device)
    windows = x.flatten(1, 2).index_select(1, tokens)
    q, k, v = _project(windows, weight, qkv_bias, scale, bias.shape[-1])
    same = region[:, None, :, None] == region[:, None, None, :]
    mask = torch.where(same, 0.0, _MASKED).to(bias.dtype)
    if type(batch) is not int or batch != 1:
        mask = mask.repeat(batch, 1, 1, 1)
    logits = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) + bias + mask
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


def _tokens(grid: WindowGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """The token of each position of the windows, and what it is masked by.

    Returns:
        int64 ``(nW * N,)``, indices of the flattened map; padded positions hold any index of it.
        int64 ``(nW, N)``, the region of each position, which attends to keys of its own.
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
