"""Cutting a feature map into windows, and who sees whom inside them.

B images, H W map size in tokens (1 token = patch_size * 2**stage pixels), C channels,
Hp Wp the map padded to whole windows, Wh Ww window size in tokens, N = Wh * Ww,
nW windows an image. Maps are channels-last throughout: ``(B, H, W, C)``.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
            if args not in results:
                # What is cached outlives the call that made it: born in inference mode, it could
                # not take part in a later training step.
                with torch.inference_mode(False):
                    made = function(*args)
                tensors = made if isinstance(made, tuple) else (made,)
                if any(type(tensor) is not Tensor for tensor in tensors):
                    return made
                while len(results) >= maxsize:
                    results.pop(next(iter(results)), None)
                results[args] = made
            return results[args]
        return cached
    return decorate


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
class WindowGrid:
    """How one map is padded, rolled and cut into windows.

    Attributes:
        size: Height and width of the map in tokens.
        window: Height and width of the windows in tokens, no larger than the map.
        shift: Tokens by which the map is rolled up and left before it is cut.
    """

    size: Pair
    window: Pair
    shift: Pair

    @classmethod
    def for_map(cls, size: Pair, window: Pair, shifted: bool) -> 'WindowGrid':
        """The grid of a block: decided per call and per axis, from the map that arrives.

        A window never exceeds the map, and an axis that one window covers is not shifted
        (a shift there would only cut the one window in two).

        Args:
            size: Height and width of the map in tokens, at least 1.
            window: Window asked for, in tokens, at least 1.
            shifted: Whether the block is one of those (the odd ones) that shift by half a window.
        """
        window = (min(window[0], size[0]), min(window[1], size[1]))
        shift = tuple(w // 2 if shifted and w < s else 0
                      for w, s in zip(window, size, strict=True))
        return cls(tuple(size), window, shift)

    @property
    def padded_size(self) -> Pair:
        """The map's size, rounded up to whole windows."""
        return tuple(-(-s // w) * w for s, w in zip(self.size, self.window, strict=True))

    def split(self, x: Tensor) -> Tensor:
        """Pad, roll and cut: ``(B, H, W, C) -> (B * nW, N, C)``.

        The map is padded (below and right, with zeros) before it is rolled. The other way
        round, the tokens that wrap around would land beside the wrong neighbours.
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
        return x[:, :self.size[0], :self.size[1]]

    def visible_keys(self, device: torch.device) -> Tensor | None:
        """Which keys each query may see.

        Returns:
            Boolean ``(nW, N, N)``, [window, query, key], or None where every query sees every
            key. Shared between calls: not to be written to.
        """
        if self.padded_size == self.size and not any(self.shift):
            return None
        return _visible_keys(self, device)


@cache_tensors(_CACHED_MASKS)
def _visible_keys(grid: WindowGrid, device: torch.device) -> Tensor:
    wrapped, real = zip(*(_axis_labels(*axis, device=device) for axis in zip(
        grid.size, grid.padded_size, grid.shift, strict=True)), strict=True)
    # Tokens that the roll brought round an edge are neighbours of the others in the window but not
    # in the picture. Two bits name the four parts that may meet in a window.
    part = 2 * wrapped[0][:, None] + wrapped[1][None, :]
    part = window_partition(part[None, :, :, None], grid.window).squeeze(-1)
    real = window_partition((real[0][:, None] & real[1][None, :])[None, :, :, None],
                            grid.window).squeeze(-1)
    same_part = part[:, :, None] == part[:, None, :]
    # What a padded query computes is dropped; let it see every real key (each window has one),
    # because a query that sees nothing has a softmax of 0 / 0.
    padded_query = ~real[:, :, None]
    return (same_part | padded_query) & real[:, None, :]


def _axis_labels(size: int, padded: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each rolled position of one axis: did it wrap around (int), is it real (bool)."""
    position = (torch.arange(padded, device=device) + shift) % padded
    return (position < shift).long(), position < size
