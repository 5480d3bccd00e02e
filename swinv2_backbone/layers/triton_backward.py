"""Triton kernels of the window attention, backward, for NVIDIA GPUs.

T tokens of all maps, N tokens per window, nH heads, d channels per head, C = nH * d.

Small windows need one kernel, `backward_whole`. For others, `backward_queries` goes first and
writes what the softmax of each query needs: two numbers. Then comes `backward_keys` and, where that
cannot own all queries of a window, `backward_bias`.

Programs share the windows as those of the forward do. Nothing is added atomically: each program
writes its sums for the gradients of bias and scale to a place of its own, so that results are the
same in every run.
"""

import triton
import triton.language as tl

from .triton_bias import load_bias, load_excluding_bias, store_sums
from .triton_tiles import (
    EXCLUDED,
    SIZES,
    exponents,
    first_token,
    load_keys_values,
    load_queries_grads,
    load_vectors,
    logits,
    next_weights,
    product,
    project,
    round_to,
    store_vectors,
    tokens,
    units,
)


@triton.jit(do_not_specialize=SIZES)
def backward_whole(
    grad_out, qkv, scale, table, grad_qkv, grad_bias, grad_scale,
    windows, H, W, WH, WW, ROWS, COLS, SH, SW, heads,
    D: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """All gradients, where one tile has all queries and keys of a window.

    Programs: (nH, 1, any number).

    Args:
        grad_bias: One sum per program, ``(programs, nH, N, N)``.
        grad_scale: One sum per program, ``(programs, nH)``.
    """
    h, N, stride = tl.program_id(0), WH * WW, heads * D
    sizes = (H, W, WH, WW, ROWS, COLS, SH, SW)
    i, j = tl.arange(0, SIDE), tl.arange(0, SIDE)
    bias = load_excluding_bias(table, i, j, h, WH, WW)
    bias_sum = tl.zeros((SIDE, SIDE), tl.float32)
    scale_sum = tl.zeros((SIDE,), tl.float32)
    factor = tl.load(scale + h)
    qkv += h * D
    grad_out += h * D
    grad_qkv += h * D
    for window in range(tl.program_id(2), windows, tl.num_programs(2)):
        first, masked = first_token(window, sizes)
        token, valid = tokens(i, first, sizes)
        k, v, r_k = load_keys_values(qkv, token, valid, stride, D)
        q, g, r_q = load_queries_grads(qkv, grad_out, token, valid, stride, D)
        s = logits(q, k, r_q * factor, r_k, bias, i, j, first, masked, sizes)
        exponent = exponents(s, tl.max(s, 1))
        p = tl.exp2(exponent)
        p *= (1.0 / tl.sum(p, 1))[:, None]
        grad_p = product(g, tl.trans(v), v.dtype)
        grad_s = p * (grad_p - tl.sum(p * grad_p, 1)[:, None])
        bias_sum += grad_s
        scale_sum += tl.sum(grad_s * exponent, 1)
        grad_v = product(tl.trans(round_to(p, g.dtype)), g, g.dtype)
        store_vectors(grad_v, grad_qkv + 2 * stride, token, valid, 3 * stride, D)
        grad_s = round_to(grad_s, q.dtype)
        # Queries and keys are read again, from the cache, right where they are used: registers do
        # not suffice to keep them, in the layouts of both uses. (Each time a store comes before;
        # without one, the compiler would make one load of two.)
        q = load_vectors(qkv, token, valid, 3 * stride, D)
        grad_k = product(tl.trans(grad_s), units(q, r_q), q.dtype)
        k = load_vectors(qkv + stride, token, valid, 3 * stride, D)
        grad_k = project(grad_k, k, r_k, factor)
        store_vectors(grad_k, grad_qkv + stride, token, valid, 3 * stride, D)
        grad_q = product(grad_s, units(k, r_k), k.dtype)
        q = load_vectors(qkv, token, valid, 3 * stride, D)
        grad_q = project(grad_q, q, r_q, factor)
        store_vectors(grad_q, grad_qkv, token, valid, 3 * stride, D)
    store_sums(bias, bias_sum, scale_sum, factor, grad_bias, grad_scale, i, j, h, heads, N)


@triton.jit
def add_keys(s, grad_p, unit_k, DTYPE: tl.constexpr, largest, total, mean, grad_q, sum_k):
    """One more tile of keys in the sums of `backward_queries`.

    Args:
        s: Logits of the tile.
        grad_p: Gradients of its weights.
        largest: Largest logit so far, by query; the weights p of the sums are relative to it.
        total: Sum of p.
        mean: Sum of p * grad_p, over the total.
        grad_q: Sum of p * (grad_p - mean) * unit_k.
        sum_k: Sum of p * unit_k. When the mean changes, it corrects grad_q, which is never a
            difference of large numbers.

    Returns:
        The last five, with this tile.
    """
    largest, fade, p = next_weights(s, largest)
    before = mean
    total *= fade
    mean *= total
    total += tl.sum(p, 1)
    mean = (mean + tl.sum(p * grad_p, 1)) / total
    grad_q = (grad_q - (mean - before)[:, None] * sum_k) * fade[:, None]
    grad_q += product(p * (grad_p - mean[:, None]), unit_k, DTYPE)
    sum_k = sum_k * fade[:, None] + product(p, unit_k, DTYPE)
    return largest, total, mean, grad_q, sum_k


@triton.jit(do_not_specialize=SIZES)
def backward_queries(
    grad_out, qkv, scale, table, grad_qkv, logsumexp, delta,
    windows, H, W, WH, WW, ROWS, COLS, SH, SW, heads,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries, and of each one's softmax what the other kernels need.

    Programs: (nH, tiles of queries, any number).

    Args:
        logsumexp: Logarithm of the softmax's sum, ``(T, nH)``.
        delta: Sum of weight times its gradient over the keys, ``(T, nH)``. It is computed from the
            float32 weights: from a rounded output, it would have most of the gradients' error.
    """
    h, N, stride = tl.program_id(0), WH * WW, heads * D
    sizes = (H, W, WH, WW, ROWS, COLS, SH, SW)
    i = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    factor = tl.load(scale + h)
    qkv += h * D
    grad_out += h * D
    for window in range(tl.program_id(2), windows, tl.num_programs(2)):
        first, masked = first_token(window, sizes)
        token_i, valid_i = tokens(i, first, sizes)
        q, g, r_q = load_queries_grads(qkv, grad_out, token_i, valid_i, stride, D)
        largest = tl.full((QUERIES,), float('-inf'), tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
        mean = tl.zeros((QUERIES,), tl.float32)
        grad_q = tl.zeros((QUERIES, D), tl.float32)
        sum_k = tl.zeros((QUERIES, D), tl.float32)
        for start in range(0, N, KEYS):
            j = start + tl.arange(0, KEYS)
            token_j, valid_j = tokens(j, first, sizes)
            k, v, r_k = load_keys_values(qkv, token_j, valid_j, stride, D)
            bias, partly = load_bias(table, i, j, h, WH, WW), start + KEYS > N
            s = logits(q, k, r_q * factor, r_k, bias, i, j, first, masked | partly, sizes)
            grad_p = product(g, tl.trans(v), v.dtype)
            largest, total, mean, grad_q, sum_k = add_keys(
                s, grad_p, units(k, r_k), k.dtype, largest, total, mean, grad_q, sum_k
            )
        at = token_i.to(tl.int64) * heads + h
        tl.store(logsumexp + at, largest + tl.log(total), mask=valid_i)
        tl.store(delta + at, mean, mask=valid_i)
        q = load_vectors(qkv, token_i, valid_i, 3 * stride, D)  # See backward_whole.
        grad_q = project(grad_q * (1.0 / total)[:, None], q, r_q, factor)
        store_vectors(grad_q, grad_qkv + h * D, token_i, valid_i, 3 * stride, D)


@triton.jit
def load_softmax(logsumexp, delta, token, valid, h, heads):
    """What `backward_queries` has written; padded queries get weights of 0."""
    at = token.to(tl.int64) * heads + h
    sums = tl.load(logsumexp + at, mask=valid, other=-EXCLUDED)
    return sums, tl.load(delta + at, mask=valid, other=0.0)


@triton.jit(do_not_specialize=SIZES)
def backward_keys(
    grad_out, qkv, scale, table, logsumexp, delta, grad_qkv, grad_bias, grad_scale,
    windows, H, W, WH, WW, ROWS, COLS, SH, SW, heads,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, ONE_TILE: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, and this program's share of those of scale and bias.

    Programs: (nH, tiles of keys, any number).

    Args:
        grad_bias: One sum per program, ``(programs, nH, N, N)``. Unused if not ONE_TILE: see
            `backward_bias`.
        grad_scale: One sum per program, ``(programs, tiles of keys, nH)``.
        ONE_TILE: Whether one tile has all queries.
    """
    h, N, stride = tl.program_id(0), WH * WW, heads * D
    sizes = (H, W, WH, WW, ROWS, COLS, SH, SW)
    j = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    if ONE_TILE:
        i = tl.arange(0, QUERIES)
        kept_bias = load_excluding_bias(table, i, j, h, WH, WW)
        bias_sum = tl.zeros((QUERIES, KEYS), tl.float32)
        scale_sum = tl.zeros((QUERIES,), tl.float32)
    partly = (tl.program_id(1) + 1) * KEYS > N
    factor = tl.load(scale + h)
    qkv += h * D
    grad_out += h * D
    grad_qkv += h * D
    for window in range(tl.program_id(2), windows, tl.num_programs(2)):
        first, masked = first_token(window, sizes)
        token_j, valid_j = tokens(j, first, sizes)
        k, v, r_k = load_keys_values(qkv, token_j, valid_j, stride, D)
        grad_k, grad_v = tl.zeros((KEYS, D), tl.float32), tl.zeros((KEYS, D), tl.float32)
        for start in range(0, QUERIES if ONE_TILE else N, QUERIES):
            if not ONE_TILE:
                i = start + tl.arange(0, QUERIES)
            bias = kept_bias if ONE_TILE else load_bias(table, i, j, h, WH, WW)
            token_i, valid_i = tokens(i, first, sizes)
            q, g, r_q = load_queries_grads(qkv, grad_out, token_i, valid_i, stride, D)
            s = logits(q, k, r_q * factor, r_k, bias, i, j, first, masked | partly, sizes)
            grad_p = product(g, tl.trans(v), v.dtype)
            sums, mean = load_softmax(logsumexp, delta, token_i, valid_i, h, heads)
            exponent = exponents(s, sums)
            p = tl.exp2(exponent)
            grad_s = p * (grad_p - mean[:, None])
            if ONE_TILE:
                bias_sum += grad_s
                scale_sum += tl.sum(grad_s * exponent, 1)
            grad_v += product(tl.trans(p), g, g.dtype)
            grad_k += product(tl.trans(grad_s), units(q, r_q), q.dtype)
        grad_k = project(grad_k, k, r_k, factor)
        store_vectors(grad_k, grad_qkv + stride, token_j, valid_j, 3 * stride, D)
        store_vectors(grad_v, grad_qkv + 2 * stride, token_j, valid_j, 3 * stride, D)
    if ONE_TILE:
        store_sums(kept_bias, bias_sum, scale_sum, factor, grad_bias, grad_scale, i, j, h, heads, N)


@triton.jit(do_not_specialize=SIZES)
def backward_bias(
    grad_out, qkv, scale, table, logsumexp, delta, grad_bias, grad_scale,
    windows, H, W, WH, WW, ROWS, COLS, SH, SW, heads,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of the bias, where a program of `backward_keys` cannot own all queries.

    Programs: (nH, tiles of queries times tiles of keys, any number).

    Args:
        grad_bias: One sum per program, ``(programs, nH, N, N)``.
    """
    h, N, stride = tl.program_id(0), WH * WW, heads * D
    sizes = (H, W, WH, WW, ROWS, COLS, SH, SW)
    tiles = (N + KEYS - 1) // KEYS
    i = tl.program_id(1) // tiles * QUERIES + tl.arange(0, QUERIES)
    j = tl.program_id(1) % tiles * KEYS + tl.arange(0, KEYS)
    bias = load_excluding_bias(table, i, j, h, WH, WW)
    bias_sum = tl.zeros((QUERIES, KEYS), tl.float32)
    scale_sum = tl.zeros((QUERIES,), tl.float32)
    factor = tl.load(scale + h)
    qkv += h * D
    grad_out += h * D
    for window in range(tl.program_id(2), windows, tl.num_programs(2)):
        first, masked = first_token(window, sizes)
        token_i, valid_i = tokens(i, first, sizes)
        token_j, valid_j = tokens(j, first, sizes)
        q, g, r_q = load_queries_grads(qkv, grad_out, token_i, valid_i, stride, D)
        k, v, r_k = load_keys_values(qkv, token_j, valid_j, stride, D)
        s = logits(q, k, r_q * factor, r_k, bias, i, j, first, masked, sizes)
        sums, mean = load_softmax(logsumexp, delta, token_i, valid_i, h, heads)
        grad_p = product(g, tl.trans(v), v.dtype)
        exponent = exponents(s, sums)
        grad_s = tl.exp2(exponent) * (grad_p - mean[:, None])
        bias_sum += grad_s
        scale_sum += tl.sum(grad_s * exponent, 1)
    store_sums(bias, bias_sum, scale_sum, factor, grad_bias, grad_scale, i, j, h, heads, N)
