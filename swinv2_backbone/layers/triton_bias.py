"""From the table of the position bias to the bias of a tile, and back for the gradients.

Wh Ww window size in tokens, N = Wh * Ww, nH heads.

The table has a bias for each offset between query and key; see `position_bias.expand_table`.
"""

import triton
import triton.language as tl

from .triton_tiles import EXCLUDED, LOG2E, row_and_column


@triton.jit
def load_bias(table, i, j, h, WH, WW):
    """Position bias of a tile, from the ``(nH, (2 Wh - 1) * (2 Ww - 1))`` table.

    See `expand_table`. Beyond the window's end it is any number of the table.
    """
    last = WH * WW - 1
    # i + y * (WW - 1) is the place y * (2 * WW - 1) + x.
    i, j = tl.minimum(i, last), tl.minimum(j, last)
    i += row_and_column(i, WW)[0] * (WW - 1)
    j += row_and_column(j, WW)[0] * (WW - 1)
    center = (h * (2 * WH - 1) + WH - 1) * (2 * WW - 1) + WW - 1
    return tl.load(table + center + (i[:, None] - j[None, :]))


@triton.jit
def load_excluding_bias(table, i, j, h, WH, WW):
    """The same, where keys beyond the window's end are excluded."""
    return tl.where((j < WH * WW)[None, :], load_bias(table, i, j, h, WH, WW), EXCLUDED)


@triton.jit
def store_sums(bias, bias_sum, scale_sum, factor, grad_bias, grad_scale, i, j, h, heads, N):
    """Write a program's sums for the gradients of bias and scale, each to its own place.

    Programs: (nH, tiles, any number).

    Args:
        bias: Of a tile with queries i and keys j.
        bias_sum: Sum of the gradients of its logits.
        scale_sum: By query, the sum of gradient times logit, the latter in units of log(2) and but
            for a number by query, which has no effect: the gradients of a query add up to 0.
        factor: The scale.
        grad_bias: ``(programs, nH, N, N)``.
        grad_scale: ``(programs, tiles, nH)``.
    """
    program, tile = tl.program_id(2).to(tl.int64), tl.program_id(1)
    at = (program * heads + h) * N * N + i[:, None] * N + j[None, :]
    tl.store(grad_bias + at, bias_sum, mask=(i < N)[:, None] & (j < N)[None, :])
    # The logit without the bias is the scaled cosine. (From the rounded vectors, this would have a
    # large error: keys that share the weight of a query have nearly equal cosines, and only their
    # differences count.)
    along_cosine = tl.sum(scale_sum, 0) / LOG2E - tl.sum(tl.sum(bias * bias_sum, 1), 0)
    at = (program * tl.num_programs(1) + tile) * heads + h
    tl.store(grad_scale + at, along_cosine / factor)


@triton.jit(do_not_specialize=['WH', 'WW'])
def reduce_to_table(grad_bias, grad_table, WH, WW, ROWS: tl.constexpr, COLS: tl.constexpr):
    """From the gradient of the bias to that of its table: sums along the diagonals.

    Programs: (nH, 2 Wh - 1), each for the table's entries of one offset of rows.

    Args:
        grad_bias: ``(nH, N, N)``.
        ROWS: Queries at a time.
        COLS: At least 2 Ww - 1.
    """
    h, dy, dx = tl.program_id(0), tl.program_id(1) - WH + 1, tl.arange(0, COLS) - WW + 1
    N = WH * WW
    total = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(tl.maximum(dy, 0) * WW, tl.minimum(WH, WH + dy) * WW, ROWS):
        i = start + tl.arange(0, ROWS)
        y, x = i // WW - dy, i % WW
        x = x[:, None] - dx[None, :]  # (y, x): the keys at these offsets.
        inside = (i < N)[:, None] & (y < WH)[:, None] & (y >= 0)[:, None] & (x >= 0) & (x < WW)
        at = (h.to(tl.int64) * N + i)[:, None] * N + y[:, None] * WW + x
        total += tl.load(grad_bias + at, mask=inside, other=0.0)
    at = (h * (2 * WH - 1) + dy + WH - 1) * (2 * WW - 1) + tl.arange(0, COLS)
    tl.store(grad_table + at, tl.sum(total, 0), mask=tl.arange(0, COLS) < 2 * WW - 1)
