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
    LOG2E,
    SIZES,
    exponents,
    first_token,
    load_vectors,
    logits,
    product,
    project,
    reciprocal_length,
    round_to,
    store_vectors,
    tokens,
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
    grad_qkv += h * D
    for window in range(tl.program_id(2), windows, tl.num_programs(2)):
        first, masked = first_token(window, sizes)
        token, valid = tokens(i, first, sizes)
        q = load_vectors(qkv, token, valid, 3 * stride, D)
        k = load_vectors(qkv + stride, token, valid, 3 * stride, D)
        v = load_vectors(qkv + 2 * stride, token, valid, 3 * stride, D)
        g = load_vectors(grad_out + h * D, token, valid, stride, D)
        r_q, r_k = reciprocal_length(q), reciprocal_length(k)
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
        unit_q, unit_k = q.to(tl.float32) * r_q[:, None], k.to(tl.float32) * r_k[:, None]
        grad_k = project(product(tl.trans(grad_s), unit_q, q.dtype), unit_k, r_k * factor)
        store_vectors(grad_k, grad_qkv + stride, token, valid, 3 * stride, D)
        grad_q = project(product(grad_s, unit_k, k.dtype), unit_q, r_q * factor)
        store_vectors(grad_q, grad_qkv, token, valid, 3 * stride, D)
    store_sums(bias, bias_sum, scale_sum, factor, grad_bias, grad_scale, i, j, h, heads, N)


@triton.jit(do_not_specialize=SIZES)
def backward_queries(
    grad_out, qkv, scale, table, grad_qkv, logsumexp, delta,
    windows, H, W, WH, WW, ROWS, COLS, SH, SW, heads,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, ONE_TILE: tl.constexpr,
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
    if ONE_TILE:
        j = tl.arange(0, KEYS)
        bias = load_excluding_bias(table, i, j, h, WH, WW)
    factor = tl.load(scale + h)
    qkv += h * D
    for window in range(tl.program_id(2), windows, tl.num_programs(2)):
        first, masked = first_token(window, sizes)
        token_i, valid_i = tokens(i, first, sizes)
        q = load_vectors(qkv, token_i, valid_i, 3 * stride, D)
        g = load_vectors(grad_out + h * D, token_i, valid_i, stride, D)
        r_q = reciprocal_length(q)
        q_factor = r_q * factor
        if ONE_TILE:
            token_j, valid_j = tokens(j, first, sizes)
            k = load_vectors(qkv + stride, token_j, valid_j, 3 * stride, D)
            v = load_vectors(qkv + 2 * stride, token_j, valid_j, 3 * stride, D)
            r_k = reciprocal_length(k)
            s = logits(q, k, q_factor, r_k, bias, i, j, first, masked, sizes)
            largest = tl.max(s, 1)
            p = tl.exp2(exponents(s, largest))
            total = tl.sum(p, 1)
            grad_p = product(g, tl.trans(v), v.dtype)
            mean = tl.sum(p * grad_p, 1) / total
            grad_q = product(p * (grad_p - mean[:, None]), k.to(tl.float32) * r_k[:, None], k.dtype)
        else:
            largest = tl.full((QUERIES,), float('-inf'), tl.float32)
            total = tl.zeros((QUERIES,), tl.float32)
            mean = tl.zeros((QUERIES,), tl.float32)
            # Sums over the keys so far, of p * (grad_p - mean) * k and of p * k: when the mean
            # changes, the second corrects the first, which is never a difference of large numbers.
            grad_q = tl.zeros((QUERIES, D), tl.float32)
            sum_k = tl.zeros((QUERIES, D), tl.float32)
            for start in range(0, N, KEYS):
                j = start + tl.arange(0, KEYS)
                token_j, valid_j = tokens(j, first, sizes)
                k = load_vectors(qkv + stride, token_j, valid_j, 3 * stride, D)
                v = load_vectors(qkv + 2 * stride, token_j, valid_j, 3 * stride, D)
                bias, partly = load_bias(table, i, j, h, WH, WW), start + KEYS > N
                r_k = reciprocal_length(k)
                s = logits(q, k, q_factor, r_k, bias, i, j, first, masked | partly, sizes)
                before, mean_before = largest, mean
                largest = tl.maximum(before, tl.max(s, 1))
                fade = tl.exp2((before - largest) * LOG2E)
                p = tl.exp2(exponents(s, largest))
                grad_p = product(g, tl.trans(v), v.dtype)
                total *= fade
                mean *= total
                total += tl.sum(p, 1)
                mean = (mean + tl.sum(p * grad_p, 1)) / total
                unit_k = k.to(tl.float32) * r_k[:, None]
                grad_q = (grad_q - (mean - mean_before)[:, None] * sum_k) * fade[:, None]
                grad_q += product(p * (grad_p - mean[:, None]), unit_k, k.dtype)
                sum_k = sum_k * fade[:, None] + product(p, unit_k, k.dtype)
        unit_q = q.to(tl.float32) * r_q[:, None]
        grad_q = project(grad_q * (1.0 / total)[:, None], unit_q, r_q * factor)
        store_vectors(grad_q, grad_qkv + h * D, token_i, valid_i, 3 * stride, D)
        at = token_i.to(tl.int64) * heads + h
        tl.store(logsumexp + at, largest + tl.log(total), mask=valid_i)
        tl.store(delta + at, mean, mask=valid_i)


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
    grad_qkv += h * D
    for window in range(tl.program_id(2), windows, tl.num_programs(2)):
        first, masked = first_token(window, sizes)
        token_j, valid_j = tokens(j, first, sizes)
        k = load_vectors(qkv + stride, token_j, valid_j, 3 * stride, D)
        v = load_vectors(qkv + 2 * stride, token_j, valid_j, 3 * stride, D)
        r_k = reciprocal_length(k)
        unit_k = k.to(tl.float32) * r_k[:, None]
        grad_k, grad_v = tl.zeros((KEYS, D), tl.float32), tl.zeros((KEYS, D), tl.float32)
        for start in range(0, QUERIES if ONE_TILE else N, QUERIES):
            if not ONE_TILE:
                i = start + tl.arange(0, QUERIES)
            bias = kept_bias if ONE_TILE else load_bias(table, i, j, h, WH, WW)
            token_i, valid_i = tokens(i, first, sizes)
            q = load_vectors(qkv, token_i, valid_i, 3 * stride, D)
            g = load_vectors(grad_out + h * D, token_i, valid_i, stride, D)
            r_q = reciprocal_length(q)
            unit_q = q.to(tl.float32) * r_q[:, None]
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
            grad_k += product(tl.trans(grad_s), unit_q, q.dtype)
        grad_k = project(grad_k, unit_k, r_k * factor)
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
    for window in range(tl.program_id(2), windows, tl.num_programs(2)):
        first, masked = first_token(window, sizes)
        token_i, valid_i = tokens(i, first, sizes)
        token_j, valid_j = tokens(j, first, sizes)
        q = load_vectors(qkv, token_i, valid_i, 3 * stride, D)
        k = load_vectors(qkv + stride, token_j, valid_j, 3 * stride, D)
        v = load_vectors(qkv + 2 * stride, token_j, valid_j, 3 * stride, D)
        g = load_vectors(grad_out + h * D, token_i, valid_i, stride, D)
        q_factor = reciprocal_length(q) * factor
        s = logits(q, k, q_factor, reciprocal_length(k), bias, i, j, first, masked, sizes)
        sums, mean = load_softmax(logsumexp, delta, token_i, valid_i, h, heads)
        grad_p = product(g, tl.trans(v), v.dtype)
        exponent = exponents(s, sums)
        grad_s = tl.exp2(exponent) * (grad_p - mean[:, None])
        bias_sum += grad_s
        scale_sum += tl.sum(grad_s * exponent, 1)
    store_sums(bias, bias_sum, scale_sum, factor, grad_bias, grad_scale, i, j, h, heads, N)
