"""Partition of a feature map into windows, and their attention masks.

B images, H W map size in tokens (1 token = patch_size * 2**stage pixels), C channels,
Hp Wp size of the map padded to whole windows, Wh Ww window size in tokens, N = Wh * Ww,
nW windows per image. Maps are channels-last: ``(B, H, W, C)``.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .caches import cache_tensors, exporting

Pair = tuple[int, int]
# For each position of a window along one axis: whether it wrapped around, whether it is valid.
AxisLabels = tuple[tuple[bool, bool], ...]

# A forward has at most eight grids (four stages, with and without shift). A larger cache would only
# collect masks under multi-scale training, where nearly every size is new.
_CACHED_GRIDS = 16


def window_partition(x: Tensor, window: Pair) -> Tensor:
    """Cut a map of whole windows, row by row: ``(B, Hp, Wp, C) -> (B * nW, N, C)``."""
    batch, height, width, channels = x.shape
    rows, cols = height // window[0], width // window[1]
    x = x.reshape(batch, rows, window[0], cols, window[1], channels)
    return x.transpose(2, 3).reshape(batch * rows * cols, window[0] * window[1], channels)


def window_reverse(windows: Tensor, window: Pair, size: Pair) -> Tensor:
    """Undo :func:`window_partition`: ``(B * nW, N, C) -> (B, Hp, Wp, C)``, `size` = (Hp, Wp)."""
    rows, cols = size[0] // window[0], size[1] // window[1]
    x = windows.reshape(-1, rows, cols, window[0], window[1], windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, size[0], size[1], windows.shape[-1])


def size_is_unknown(side: int) -> bool:
    """Whether the side of a map is a variable of a graph that an exporter makes."""
    return exporting() and type(side) is not int


@dataclass(frozen=True)
class WindowGroup:
    """The windows of a grid that share one attention mask.

    A grid has at most nine groups: the windows without a mask, those that the shift boundary
    crosses, and those with padding, along each axis.

    Attributes:
        tokens: int64 ``(n, N)``, the index of each position's token in the flattened maps,
            ``(B * H * W)``. Padded positions hold any index within range: they are masked.
        attn_mask: Boolean ``(N, N)``, [query, key], True where the key is attended to. None:
            everywhere.
        valid: int64 ``(V,)``, the positions that are not padding. None: all of them.
    """

    tokens: Tensor
    attn_mask: Tensor | None
    valid: Tensor | None


@dataclass(frozen=True)
class WindowGrid:
    """How one map is padded, rolled and cut into windows.

    Attributes:
        size: Height and width of the map in tokens.
        window: Height and width of the windows in tokens, no larger than the map.
        shifted: Whether the windows are shifted, along the axes that have several.
    """

    size: Pair
    window: Pair
    shifted: bool

    @classmethod
    def for_map(cls, size: Pair, window: Pair, shifted: bool) -> 'WindowGrid':
        """The grid of a block for a map: along each axis, the window is at most the map's size.

        Args:
            size: Height and width of the map in tokens, at least 1.
            window: Configured window in tokens, at least 1.
            shifted: Whether the block is shifted by half a window, as every second one is.
        """
        # (Not min(): torch.compile keeps it symbolic, and every shape that depends on it.)
        height, width = (
            w if size_is_unknown(s) or w <= s else s for w, s in zip(window, size, strict=True)
        )
        return cls((size[0], size[1]), (height, width), shifted)

    @property
    def shift(self) -> Pair:
        """Tokens by which the map is rolled up and left before it is cut: half a window.

        An axis that one window covers is not shifted, which would only cut that window in two.
        """
        rows, cols = (
            w // 2 if self.shifted and w < s else 0
            for w, s in zip(self.window, self.size, strict=True)
        )
        return rows, cols

    @property
    def padded_size(self) -> Pair:
        """Size of the map in tokens, rounded up to whole windows."""
        height, width = (-(-s // w) * w for s, w in zip(self.size, self.window, strict=True))
        return height, width

    def split(self, x: Tensor) -> Tensor:
        """Pad, roll and cut: ``(B, H, W, C) -> (B * nW, N, C)``.

        The map is padded (below and right, with zeros) before it is rolled. In the other order,
        tokens that wrap around would come to lie beside tokens that are not their neighbors.
        """
        height, width = self.padded_size
        if (height, width) != self.size:
            x = F.pad(x, (0, 0, 0, width - self.size[1], 0, height - self.size[0]))
        if any(self.shift):
            x = torch.roll(x, (-self.shift[0], -self.shift[1]), dims=(1, 2))
        return window_partition(x, self.window)

    def merge(self, windows: Tensor) -> Tensor:
        """Undo :meth:`split`: ``(B * nW, N, C) -> (B, H, W, C)``, without the padding."""
        x = window_reverse(windows, self.window, self.padded_size)
        if any(self.shift):
            x = torch.roll(x, self.shift, dims=(1, 2))
        return x[:, : self.size[0], : self.size[1]]

    def attention_mask(self, device: torch.device) -> Tensor | None:
        """Attention mask of the windows of one map.

        Returns:
            Boolean ``(nW, N, N)``, [window, query, key], True where the key is attended to. None
            if that is everywhere. The tensor is shared between calls: do not write to it.
        """
        if self.padded_size == self.size and not any(self.shift):
            return None
        return _attention_mask(self, device)

    def groups(self, batch: int, device: torch.device) -> tuple[WindowGroup, ...]:
        """The windows of a batch of maps, grouped by attention mask.

        It holds what :meth:`split` and :meth:`attention_mask` compute. Each token of the maps is in
        exactly one window. The tensors are shared between calls: do not write to them.
        """
        return _groups(self, batch, device)


def _mask(region: Tensor, valid: Tensor) -> Tensor:
    """The rule of the attention mask.

    Args:
        region: int64 ``(..., N)``, equal for the positions of a window that are neighbors in the
            image: the roll of a shifted grid brings tokens round an edge, into a window with
            tokens from the other side.
        valid: Boolean ``(..., N)``, False for padding.

    Returns:
        Boolean ``(..., N, N)``, [query, key]: keys are valid and of the query's region.
    """
    same_region = region[..., :, None] == region[..., None, :]
    # The output of padded queries is dropped. They attend to all valid keys (each window has at
    # least one), because the softmax of a row without any key is 0 / 0.
    return (same_region | ~valid[..., :, None]) & valid[..., None, :]


@cache_tensors(_CACHED_GRIDS)
def _attention_mask(grid: WindowGrid, device: torch.device) -> Tensor:
    (row_wrapped, row_valid), (col_wrapped, col_valid) = (
        _axis_labels(*axis, device=device)
        for axis in zip(grid.size, grid.padded_size, grid.shift, strict=True)
    )
    region = 2 * row_wrapped[:, None] + col_wrapped
    valid = row_valid[:, None] & col_valid
    region, valid = (
        window_partition(map_[None, :, :, None], grid.window).squeeze(-1)
        for map_ in (region, valid)
    )
    return _mask(region, valid)


def _axis_labels(size: int, padded: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each position of a rolled axis: whether it wrapped around (int), is valid (bool)."""
    position = torch.arange(padded, device=device) + shift
    # (Not `% padded`: ONNX's exporter has no remainder by a size that it does not know.)
    position = torch.where(position < padded, position, position - padded)
    return (position < shift).long(), position < size


@cache_tensors(_CACHED_GRIDS)
def _groups(grid: WindowGrid, batch: int, device: torch.device) -> tuple[WindowGroup, ...]:
    row_groups, col_groups = (
        _axis_groups(*axis, device=device)
        for axis in zip(grid.size, grid.padded_size, grid.window, grid.shift, strict=True)
    )
    first = torch.arange(batch, device=device)[:, None, None, None, None] * math.prod(grid.size)
    groups = []
    for row_labels, rows in row_groups.items():
        for col_labels, cols in col_groups.items():
            # [image, window row, window column, row, column]
            tokens = first + rows[:, None, :, None] * grid.size[1] + cols[None, :, None, :]
            mask_and_valid = _mask_and_valid(row_labels, col_labels, device)
            groups.append(WindowGroup(tokens.flatten(0, 2).flatten(1), *mask_and_valid))
    return tuple(groups)


def _axis_groups(
    size: int, padded: int, window: int, shift: int, device: torch.device
) -> dict[AxisLabels, Tensor]:
    """The windows along one axis, grouped by the labels of their positions.

    Returns:
        For each group, the places of its windows' positions on the map: int64 ``(n, window)``,
        clamped to the map.
    """
    groups: dict[AxisLabels, list[list[int]]] = {}
    for start in range(0, padded, window):
        places = [(start + i + shift) % padded for i in range(window)]
        labels = tuple((place < shift, place < size) for place in places)
        groups.setdefault(labels, []).append([min(place, size - 1) for place in places])
    return {labels: torch.tensor(places, device=device) for labels, places in groups.items()}


def _mask_and_valid(
    row_labels: AxisLabels, col_labels: AxisLabels, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """`attn_mask` and `valid` of a group, from the labels along its two axes."""
    padded = not all(valid for _, valid in row_labels + col_labels)
    if not padded and len(set(row_labels)) == len(set(col_labels)) == 1:
        return None, None
    # Lists of numbers, not tensors: the number of nonzero elements of a fake tensor is unknown.
    labels = [(2 * row[0] + col[0], row[1] and col[1]) for row in row_labels for col in col_labels]
    region, valid = zip(*labels, strict=True)
    mask = _mask(torch.tensor(region, device=device), torch.tensor(valid, device=device))
    if not padded:
        return mask, None
    return mask, torch.tensor([i for i, is_valid in enumerate(valid) if is_valid], device=device)
