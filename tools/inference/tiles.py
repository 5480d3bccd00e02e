"""Overlapping tiles of an image, and which part of it each of them answers for."""

from itertools import pairwise
from typing import NamedTuple

# The side of a window of 8 tokens in the last stage. Where tiles begin at multiples of it, their
# attention windows are those of the whole image.
_ALIGNMENT = 256


class Span(NamedTuple):
    """A tile along one axis in pixels: what the model gets, and the part whose result is kept."""

    start: int
    end: int
    own_start: int
    own_end: int


class Tile(NamedTuple):
    """A tile of an image."""

    rows: Span
    columns: Span

    @property
    def outer(self) -> tuple[slice, slice]:
        """What the model gets of the image."""
        return slice(*self.rows[:2]), slice(*self.columns[:2])

    @property
    def own(self) -> tuple[slice, slice]:
        """The part of the image whose result is kept."""
        return slice(*self.rows[2:]), slice(*self.columns[2:])

    @property
    def own_inside(self) -> tuple[slice, slice]:
        """The same part in coordinates of the tile."""
        return tuple(slice(span.own_start - span.start, span.own_end - span.start) for span in self)


def spans(size: int, tile: int, overlap: int) -> list[Span]:
    """Tiles along an axis; neighbors meet in the middle of what they share.

    The last tile reaches back as far as the side of a tile allows, in steps that keep the attention
    windows.
    """
    starts = [0]
    while starts[-1] + tile < size:
        starts.append(starts[-1] + tile - overlap)
    if len(starts) > 1:
        spare = tile - (size - starts[-1])
        starts[-1] -= spare // _ALIGNMENT * _ALIGNMENT
    ends = [min(start + tile, size) for start in starts]
    middles = [(start + end) // 2 for start, end in zip(starts[1:], ends, strict=False)]
    return [
        Span(start, end, *own)
        for start, end, own in zip(starts, ends, pairwise([0, *middles, size]), strict=True)
    ]


def tiles_of(height: int, width: int, tile: int | None, overlap: int) -> list[Tile]:
    """The tiles of an image, row by row; one for the whole image if `tile` is None."""
    side = tile or max(height, width)
    columns = spans(width, side, overlap)
    return [Tile(rows, each) for rows in spans(height, side, overlap) for each in columns]
