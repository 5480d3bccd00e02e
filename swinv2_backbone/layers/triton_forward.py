"""Triton kernel of the window attention, forward, for NVIDIA GPUs.

T tokens of all maps, N tokens per window, nH heads, d channels per head, C = nH * d.

A program owns one head and one tile of queries, and computes every `num_programs(2)`-th window, so
that what does not depend on the window is loaded once. Queries, keys and values are read from the
map ``(T, 3, nH, d)``, and the output is written to the map ``(T, C)``.
"""

import triton
import triton.language as tl

from .triton_bias import load_bias, load_excluding_bias
from .triton_tiles import (
    SIZES,
    exponents,
    first_token,
    load_keys_values,
    load_vectors,
    logits,
    next_weights,
    product,
    reciprocal_length,
    store_vectors,
    tokens,
)


@triton.jit(do_not_specialize=SIZES)
def forward(
    qkv, scale, table, out,
    windows, H, W, WH, WW, ROWS, COLS, SH, SW, heads,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, ONE_TILE: tl.constexpr,
):  # fmt: skip
    """The attention. Programs: (nH, tiles of queries, any number)."""
    h, N, stride = tl.program_id(0), WH * WW, heads * D
    sizes = (H, W, WH, WW, ROWS, COLS, SH, SW)
    i = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    if ONE_TILE:
        j = tl.arange(0, KEYS)
        bias = load_excluding_bias(table, i, j, h, WH, WW)
    factor = tl.load(scale + h)
    qkv += h * D
    for window in range(tl.program_id(2), windows, tl.num_programs(2)):
        first, masked = first_token(window, sizes)
        token_i, valid_i = tokens(i, first, sizes)
        q = load_vectors(qkv, token_i, valid_i, 3 * stride, D)
        q_factor = reciprocal_length(q) * factor
        if ONE_TILE:
            token_j, valid_j = tokens(j, first, sizes)
            k, v, r_k = load_keys_values(qkv, token_j, valid_j, stride, D)
            s = logits(q, k, q_factor, r_k, bias, i, j, first, masked, sizes)
            p = tl.exp2(exponents(s, tl.max(s, 1)))
            o = product(p, v, v.dtype)
            total = tl.sum(p, 1)
        else:
            largest = tl.full((QUERIES,), float('-inf'), tl.float32)
            total = tl.zeros((QUERIES,), tl.float32)
            o = tl.zeros((QUERIES, D), tl.float32)
            for start in range(0, N, KEYS):
                j = start + tl.arange(0, KEYS)
                token_j, valid_j = tokens(j, first, sizes)
                k, v, r_k = load_keys_values(qkv, token_j, valid_j, stride, D)
                bias, partly = load_bias(table, i, j, h, WH, WW), start + KEYS > N
                s = logits(q, k, q_factor, r_k, bias, i, j, first, masked | partly, sizes)
                largest, fade, p = next_weights(s, largest)
                o = o * fade[:, None] + product(p, v, v.dtype)
                total = total * fade + tl.sum(p, 1)
        store_vectors(o * (1.0 / total)[:, None], out + h * D, token_i, valid_i, stride, D)
