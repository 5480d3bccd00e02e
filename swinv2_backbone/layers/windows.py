"""Cutting a feature map into windows, and who sees whom inside them.

B images, H W map size in tokens (1 token = patch_size * 2**stage pixels), C channels,
Hp Wp the map padded to whole windows, Wh Ww window size in tokens, N = Wh * Ww,
nW windows an image. Maps are channels-last throughout: ``(B, H, W, C)``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]

# A forward meets at most eight grids (four stages, with and without shift). A larger cache
# would only pile up masks under multi-scale training, where nearly every size is new.
_CACHED_MASKS = 16


def cache_tensors(maxsize: int) -> Callable:
    """Cache a function of hashable arguments that returns tensors, the last `maxsize` results.

    Unlike functools.lru_cache it keeps no stand-ins: the fake tensors of a tracer (torch.export)
    would be handed to the next real call.
    """

    def decorate(function: Callable) -> Callable:
        results: dict = {}

        @wraps(function)
        def cached(*args):
            if torch.compiler.is_compiling():  # A graph computes what it needs.
                return function(*args)
            if args not in results:
                # What is cached outlives the call that made it: born in inference mode, it could
                # not take part in a later training step.
                with torch.inference_mode(False):
                    made = function(*args)
                tensors = _tensors_of(made)
                if any(type(tensor) is not Tensor for tensor in tensors):
                    return made
                while len(results) >= maxsize:
                    results.pop(next(iter(results)), None)
                results[args] = made
            return results[args]

        return cached

    return decorate


def _tensors_of(made: object) -> list[Tensor]:
    if isinstance(made, Tensor):
        return [made]
    if is_dataclass(made):
        made = [getattr(made, field.name) for field in fields(made)]
    return [tensor for part in made or () for tensor in _tensors_of(part)]


def window_partition(x: Tensor, window: Pair) -> Tensor:
    """Cut a map of whole windows: ``(B, Hp, Wp, C) -> (B * nW, N, C)``, row-major."""
    batch, height, width, channels = x.shape
    rows, cols = height // window[0], width // window[1]
    x = x.reshape(batch, rows, window[0], cols, window[1], channels)
    return x.transpose(2, 3).reshape(batch * rows * cols, window[0] * window[1], channels)


def window_reverse(windows: Tensor, window: Pair, size: Pair) -> Tensor:
    """Put windows back together: ``(B * nW, N, C) -> (B, Hp, Wp, C)``, `size` being (Hp, Wp)."""
    rows, cols = size[0] // window[0], size[1] // window[1]
    x = windows.reshape(-1, rows, cols, window[0], window[1], windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, size[0], size[1], windows.shape[-1])


@dataclass(frozen=True)
class WindowGroup:
    """Windows of one grid in which the same positions are padding and may see each other.

    A grid has few kinds: the plain windows, those on the seam of the shift, those at the padding.

    Attributes:
        tokens: int64 ``(n, N)``, where each position finds its token in the flattened maps,
            ``(B * H * W)``. What a padded position names does not matter, it is hidden.
        visible: Boolean ``(N, N)``, [query, key], or None: everything is.
        real: int64 ``(R,)``, the positions that are no padding, or None: all of them.
    """

    tokens: Tensor
    visible: Tensor | None
    real: Tensor | None


@dataclass(frozen=True)
class WindowGrid:
    """How one map is padded, rolled and cut into windows.

    Attributes:
        size: Height and width of the map in tokens.
        window: Height and width of the windows in tokens, no larger than the map.
        shifted: Whether the windows are shifted, on the axes where there are several.
    """

    size: Pair
    window: Pair
    shifted: bool

    @classmethod
    def for_map(cls, size: Pair, window: Pair, shifted: bool) -> 'WindowGrid':
        """The grid of a block: decided per call and per axis, from the map that arrives.

        A window never exceeds the map.

        Args:
            size: Height and width of the map in tokens, at least 1.
            window: Window asked for, in tokens, at least 1.
            shifted: Whether the block is one of those (the odd ones) that shift by half a window.
        """
        # (No min(): it stays symbolic in torch.compile, and every shape with it.)
        window = tuple(w if w <= s else s for w, s in zip(window, size, strict=True))
        return cls(tuple(size), window, shifted)

    @property
    def shift(self) -> Pair:
        """Tokens by which the map is rolled up and left before it is cut, half a window.

        An axis that one window covers is not shifted: that would only cut the window in two.
        """
        return tuple(
            w // 2 if self.shifted and w < s else 0
            for w, s in zip(self.window, self.size, strict=True)
        )

    @property
    def padded_size(self) -> Pair:
        """The map's size, rounded up to whole windows."""
        return tuple(-(-s // w) * w for s, w in zip(self.size, self.window, strict=True))

    def split(self, x: Tensor) -> Tensor:
        """Pad, roll and cut: ``(B, H, W, C) -> (B * nW, N, C)``.

        The map is padded (below and right, with zeros) before it is rolled. The other way
        round, the tokens that wrap around would land beside the wrong neighbors.
        """
        height, width = self.padded_size
        if (height, width) != self.size:
            x = F.pad(x, (0, 0, 0, width - self.size[1], 0, height - self.size[0]))
        if any(self.shift):
            x = torch.roll(x, (-self.shift[0], -self.shift[1]), dims=(1, 2))
        return window_partition(x, self.window)

    def merge(self, windows: Tensor) -> Tensor:
        """Undo :meth:`split`: ``(B * nW, N, C) -> (B, H, W, C)``, the padding dropped."""
        x = window_reverse(windows, self.window, self.padded_size)
        if any(self.shift):
            x = torch.roll(x, self.shift, dims=(1, 2))
        return x[:, : self.size[0], : self.size[1]]

    def attention_mask(self, device: torch.device) -> Tensor | None:
        """Which keys each query may see.

        Returns:
            Boolean ``(nW, N, N)``, [window, query, key], or None where every query sees every
            key. Shared between calls: not to be written to.
        """
        if self.padded_size == self.size and not any(self.shift):
            return None
        return _attention_mask(self, device)

    def kinds(self, batch: int, device: torch.device) -> tuple[WindowGroup, ...]:
        """The windows of a batch of maps, by kind: :meth:`split` and :meth:`attention_mask` in one.

        Each token of the maps stands in one window. Shared between calls: not to be written to.
        """
        return _kinds(self, batch, device)


@cache_tensors(_CACHED_MASKS)
def _attention_mask(grid: WindowGrid, device: torch.device) -> Tensor:
    wrapped, real = zip(
        *(
            _axis_labels(*axis, device=device)
            for axis in zip(grid.size, grid.padded_size, grid.shift, strict=True)
        ),
        strict=True,
    )
    # Tokens that the roll brought round an edge are neighbors of the others in the window but not
    # in the image. Two bits name the four parts that may meet in a window.
    part = 2 * wrapped[0][:, None] + wrapped[1][None, :]
    part = window_partition(part[None, :, :, None], grid.window).squeeze(-1)
    real = window_partition(
        (real[0][:, None] & real[1][None, :])[None, :, :, None], grid.window
    ).squeeze(-1)
    same_part = part[:, :, None] == part[:, None, :]
    # What a padded query computes is dropped; let it see every real key (each window has one),
    # because a query that sees nothing has a softmax of 0 / 0.
    padded_query = ~real[:, :, None]
    return (same_part | padded_query) & real[:, None, :]


@cache_tensors(_CACHED_MASKS)
def _kinds(grid: WindowGrid, batch: int, device: torch.device) -> tuple[WindowGroup, ...]:
    by_row, by_col = (
        _axis_kinds(*axis, device=device)
        for axis in zip(grid.size, grid.padded_size, grid.window, grid.shift, strict=True)
    )
    first = torch.arange(batch, device=device)[:, None, None, None, None] * math.prod(grid.size)
    kinds = []
    for row_kind, rows in by_row.items():
        for col_kind, cols in by_col.items():
            # [image, window row, window column, row, column]
            tokens = first + rows[:, None, :, None] * grid.size[1] + cols[None, :, None, :]
            kinds.append(
                WindowGroup(
                    tokens.flatten(0, 2).flatten(1), *_mask_and_valid(row_kind, col_kind, device)
                )
            )
    return tuple(kinds)


def _mask_and_valid(
    row_kind: tuple, col_kind: tuple, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """`visible` and `real` of the windows where kinds of :func:`_axis_kinds` cross."""
    if len(set(row_kind)) == len(set(col_kind)) == 1 and row_kind[0][1] and col_kind[0][1]:
        return None, None
    (row_part, row_real), (col_part, col_real) = (
        torch.tensor(kind, device=device).long().unbind(1) for kind in (row_kind, col_kind)
    )
    part = (2 * row_part[:, None] + col_part).flatten()
    real = (row_real[:, None] * col_real).flatten().bool()
    # As in _attention_mask, a padded query sees every real key.
    visible = ((part[:, None] == part) | ~real[:, None]) & real
    if all(place[1] for place in row_kind + col_kind):
        return visible, None
    # From the tuples: the number of nonzero elements of a fake tensor is not known.
    rows, cols = ([i for i, place in enumerate(kind) if place[1]] for kind in (row_kind, col_kind))
    rows, cols = torch.tensor(rows, device=device), torch.tensor(cols, device=device)
    return visible, (rows[:, None] * len(col_kind) + cols).flatten()


def _axis_kinds(size: int, padded: int, window: int, shift: int, device: torch.device) -> dict:
    """The windows along one axis, by what stands at their positions.

    Returns:
        For each kind (a pair of bools a position: did it wrap around, is it real), where its
        windows' positions are in the map: int64 ``(n, window)``, clamped to the map.
    """
    kinds: dict = {}
    for start in range(0, padded, window):
        places = [(start + i + shift) % padded for i in range(window)]
        kind = tuple((p < shift, p < size) for p in places)
        kinds.setdefault(kind, []).append([min(p, size - 1) for p in places])
    return {kind: torch.tensor(places, device=device) for kind, places in kinds.items()}


def _axis_labels(size: int, padded: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each rolled position of one axis: did it wrap around (int), is it real (bool)."""
    position = torch.arange(padded, device=device) + shift
    # (Not `% padded`: ONNX's exporter has no remainder by a size that it does not know.)
    position = torch.where(position < padded, position, position - padded)
    return (position < shift).long(), position < size
