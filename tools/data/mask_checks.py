"""Checks of the masks in COCO's format, polygons and run-length encoded (RLE), without decoding."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_AT_ONCE = 20_000  # Strings; bounds the memory.


def short(value: Any) -> str:
    """What a message shows of a value."""
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def mask_problems(
    masks: Sequence[Any], sizes: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, str, str]]:
    """What is wrong with the masks of objects.

    Args:
        masks: The `segmentation` of each.
        sizes: Width and height of its image.

    Yields:
        Index, kind and description of each that is wrong.
    """
    compressed = []
    for index, (mask, (width, height)) in enumerate(zip(masks, sizes, strict=True)):
        if isinstance(mask, dict):
            problem = _rle_problem(mask, width, height)
            if problem is None and isinstance(mask['counts'], str):
                compressed.append(index)
        else:
            problem = _polygon_problem(mask)
        if problem:
            yield (index, *problem)
    totals = run_totals([masks[index]['counts'] for index in compressed])
    for index, total in zip(compressed, totals, strict=True):
        if total != sizes[index][0] * sizes[index][1]:
            yield (index, *_wrong_total(total, *sizes[index]))


def run_totals(strings: Sequence[str]) -> np.ndarray:
    """The sum of all runs of each compressed mask, which is the number of its pixels.

    A character less 48 has 5 bits of a number, the low ones first, and a bit (32) that says that
    more follow; the highest of the last 5 bits is the sign. From the fourth run on, the number is
    the difference to the run before the previous one.

    Returns:
        (N,) of int64: -1 for a string that is no sequence of such numbers. (pycocotools writes
        beyond a mask whose runs have another total, or raises an error without a name.)

    Source:
        rleFrString in pycocotools' maskApi.c.
    """
    parts = [_totals(strings[i : i + _AT_ONCE]) for i in range(0, len(strings), _AT_ONCE)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _totals(strings: Sequence[str]) -> np.ndarray:
    fine = np.array([bool(s) and s.isascii() for s in strings])
    texts = [s if ok else '0' for s, ok in zip(strings, fine, strict=True)]
    codes = np.frombuffer(''.join(texts).encode(), np.uint8).astype(np.int64) - 48
    lengths = np.array([len(text) for text in texts])
    starts = np.cumsum(lengths) - lengths
    fine &= np.logical_and.reduceat((codes >= 0) & (codes < 64), starts)
    fine &= (codes[starts + lengths - 1] & 32) == 0

    begins = np.ones(len(codes), bool)  # Of a number: after the end of another, or of a string.
    begins[1:] = (codes[:-1] & 32) == 0
    begins[starts] = True
    first = np.flatnonzero(begins)
    digit = np.arange(len(codes)) - np.repeat(first, np.diff(np.append(first, len(codes))))
    digit = np.minimum(digit, 11)  # A number of more digits is no run of an image.
    numbers = np.add.reduceat((codes & 31) << 5 * digit, first)
    last = np.append(first[1:], len(codes)) - 1
    numbers -= ((codes[last] & 16) >> 4) << 5 * (digit[last] + 1)

    first_number = np.searchsorted(first, starts)
    count = np.diff(np.append(first_number, len(first)))
    index = np.arange(len(first)) - np.repeat(first_number, count)
    # A difference counts in its own run and in each second one after it.
    times = np.where(index == 0, 1, (np.repeat(count, count) - 1 - index) // 2 + 1)
    return np.where(fine, np.add.reduceat(numbers * times, first_number), -1)


def _polygon_problem(mask: Any) -> tuple[str, str] | None:
    """Kind and description of what is wrong with a mask of polygons."""
    if not mask:
        return 'missing masks', 'it has no segmentation, and the pipeline reads masks: add it'
    if not isinstance(mask, list) or not isinstance(mask[0], list):
        form = 'a list of polygons [[x, y, x, y, ...], ...] or a dict of RLE'
        return 'malformed masks', f'segmentation is {short(mask)}, allowed: {form}'
    for polygon in mask:
        try:
            total, number = sum(polygon), len(polygon)
        except TypeError:
            return 'malformed masks', f'a polygon is {short(polygon)}, allowed: numbers'
        if number < 6 or number % 2:
            text = f'a polygon has {number} numbers, allowed: x and y of at least 3 points'
            return 'polygons with fewer than 3 points', text
        if not -np.inf < total < np.inf:
            return 'malformed masks', 'a polygon has a point that is not finite: mend it'
    return None


def _rle_problem(mask: dict, width: int, height: int) -> tuple[str, str] | None:
    """Kind and description of what is wrong with a run-length encoded mask."""
    size, runs = mask.get('size'), mask.get('counts')
    if not isinstance(runs, (list, str)) or not isinstance(size, list):
        return 'malformed masks', f'RLE is {short(mask)}, allowed: with `size` and `counts`'
    if size != [height, width]:
        text = f'its RLE has the size {size}, and its image (height, width) {[height, width]}'
        return 'masks of another size', f'{text}: encode the mask at the size of the image'
    if isinstance(runs, list):
        if any(type(run) is not int or run < 0 for run in runs):
            return 'malformed masks', 'the `counts` of its RLE are no numbers of pixels'
        if sum(runs) != width * height:
            return _wrong_total(sum(runs), width, height)
    return None


def _wrong_total(total: int, width: int, height: int) -> tuple[str, str]:
    text = f'its RLE has {total} pixels, and its image {width} x {height} = {width * height}'
    if total < 0:
        text = 'the `counts` of its RLE are cut or no RLE of COCO'
    return 'RLE that does not fit', f'{text}: encode the mask again'
