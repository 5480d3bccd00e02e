"""What the Triton kernels of the attention do with the tiles of a window.

H W map size in tokens, Wh Ww window size in tokens, N = Wh * Ww, nH heads, d channels per head.
Positions of a window are numbered row by row. A tile has some of its queries along the rows, some
of its keys along the columns.

Every kernel takes the sizes that SIZES names. With these, the token of each position, the shift,
the padding and the attention mask are arithmetic. They are not specialized: a kernel is compiled
once for all maps and windows.
"""

import os

import triton
import triton.language as tl

SIZES = ['windows', 'H', 'W', 'WH', 'WW', 'ROWS', 'COLS', 'SH', 'SW', 'heads']
LOG2E = tl.constexpr(1.4426950408889634)
# The logit of a pair that the mask excludes: the softmax makes it 0 beside any other. Not -inf: in
# a row without any key, as a padded query may have it, the softmax stays finite.
EXCLUDED = tl.constexpr(-1e30)
# Triton's interpreter has no bfloat16: it truncates in casts, and multiplies the bits in products.
INTERPRETED = tl.constexpr(os.environ.get('TRITON_INTERPRET') == '1')


@triton.jit
def round_to(x, DTYPE: tl.constexpr):
    """`x` in a dtype, rounded to nearest."""
    if INTERPRETED and DTYPE == tl.bfloat16:  # noqa: SIM300
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = (bits & -65536).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def product(a, b, DTYPE: tl.constexpr):
    """`a @ b` of matrices rounded to a dtype, summed in float32."""
    a, b = round_to(a, DTYPE), round_to(b, DTYPE)
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision='ieee')


@triton.jit
def row_and_column(i, WW):
    """Row and column of positions in their window."""
    # Much cheaper than integer division, and exact: (i + 0.5) / WW is not near an integer.
    y = ((i.to(tl.float32) + 0.5) * (1.0 / WW)).to(tl.int32)
    return y, i - y * WW


@triton.jit
def first_token(window, sizes):
    """Image, row and column of a window's first token, before the roll's wrapping around.

    Windows are numbered row by row, map by map.

    Returns:
        These three, and whether the window has an attention mask: wraps around or has padding.
    """
    H, W, WH, WW, ROWS, COLS, SH, SW = sizes
    image = window // (ROWS * COLS)
    window -= image * (ROWS * COLS)
    row = window // COLS
    top, left = row * WH + SH, (window - row * COLS) * WW + SW
    return (image, top, left), (top + WH > H) | (left + WW > W)


@triton.jit
def tokens(i, first, sizes):
    """The tokens of positions, and which of them are valid.

    Padding is not, nor a position beyond the window's end, which a tile may have.
    """
    H, W, WH, WW, ROWS, COLS, _SH, _SW = sizes
    image, top, left = first
    y, x = row_and_column(i, WW)
    y += top
    x += left
    y = tl.where(y < ROWS * WH, y, y - ROWS * WH)
    x = tl.where(x < COLS * WW, x, x - COLS * WW)
    token = (image * H + y) * W + x
    return token, (i < WH * WW) & (y < H) & (x < W)


@triton.jit
def regions(i, first, sizes):
    """A number for the region of each position, which the attention does not leave.

    0 to 3: on which side of the shift boundaries it is. 4 and above: not valid.
    """
    H, W, WH, WW, ROWS, COLS, _SH, _SW = sizes
    _, top, left = first
    y, x = row_and_column(i, WW)
    # Both axes in one tensor, whose sum ties this to the branch that it is in: the compiler would
    # compute and keep it in all windows, a mask or not.
    is_row = (tl.arange(0, 2) == 0)[None, :]
    place = tl.where(is_row, y[:, None], x[:, None])
    wrapped = place >= tl.where(is_row, ROWS * WH - top, COLS * WW - left)
    valid = wrapped | (place < tl.where(is_row, H - top, W - left))
    side = tl.where(wrapped, tl.where(is_row, 2, 1), 0)
    return tl.sum(tl.where(valid & (i < WH * WW)[:, None], side, 4), 1)


@triton.jit
def load_vectors(base, token, valid, stride, D: tl.constexpr):
    """The d channels of tokens, which are `stride` elements apart; 0 for what is not valid."""
    at = token.to(tl.int64)[:, None] * stride + tl.arange(0, D)[None, :]
    return tl.load(base + at, mask=valid[:, None], other=0.0)


@triton.jit
def load_keys_values(qkv, token, valid, stride, D: tl.constexpr):
    """Keys and values of tokens, from the map of one head, and 1 / length of the keys."""
    k = load_vectors(qkv + stride, token, valid, 3 * stride, D)
    v = load_vectors(qkv + 2 * stride, token, valid, 3 * stride, D)
    return k, v, reciprocal_length(k)


@triton.jit
def load_queries_grads(qkv, grad_out, token, valid, stride, D: tl.constexpr):
    """Queries of tokens and gradients of their outputs, and 1 / length of the queries."""
    q = load_vectors(qkv, token, valid, 3 * stride, D)
    g = load_vectors(grad_out, token, valid, stride, D)
    return q, g, reciprocal_length(q)


@triton.jit
def store_vectors(values, base, token, valid, stride, D: tl.constexpr):
    """Write the d channels of valid tokens."""
    at = token.to(tl.int64)[:, None] * stride + tl.arange(0, D)[None, :]
    tl.store(base + at, round_to(values, base.dtype.element_ty), mask=valid[:, None])


@triton.jit
def reciprocal_length(x):
    """1 / length of each row; 0 for what the reference's normalize() makes 0."""
    x = x.to(tl.float32)
    squared = tl.sum(x * x, 1)
    return tl.where(squared > 1e-24, tl.rsqrt(tl.maximum(squared, 1e-24)), 0.0)


@triton.jit
def units(x, r):
    """Unit vectors, in float32, from vectors and 1 / their lengths."""
    return x.to(tl.float32) * r[:, None]


@triton.jit
def project(grad, x, r, factor):
    """The gradient of vectors from that of unit vectors, whose parts along these have no effect.

    Args:
        grad: The gradient of the unit vectors, but for `factor`.
        x: The vectors.
        r: 1 / their lengths.
    """
    unit = units(x, r)
    along = tl.sum(grad * unit, 1)
    return (grad - along[:, None] * unit) * (r * factor)[:, None]


@triton.jit
def logits(q, k, q_factor, k_factor, bias, i, j, first, masked, sizes):
    """Logits of a tile: the product of q and k as they are; lengths, scale and bias in float32."""
    s = product(q, tl.trans(k), q.dtype) * k_factor[None, :] * q_factor[:, None] + bias
    if masked:
        same = regions(i, first, sizes)[:, None] == regions(j, first, sizes)[None, :]
        s = tl.where(same, s, EXCLUDED)
    return s


@triton.jit
def exponents(s, largest):
    """To the base 2, of the exponentials of logits relative to a number by row."""
    return s * LOG2E - (largest * LOG2E)[:, None]


@triton.jit
def next_weights(s, before):
    """Weights of the logits of one more tile of keys, relative to the largest so far by row.

    Args:
        before: The largest before this tile.

    Returns:
        The largest, the factor that this brings for sums of the weights before, and the weights.
    """
    largest = tl.maximum(before, tl.max(s, 1))
    return largest, tl.exp2((before - largest) * LOG2E), tl.exp2(exponents(s, largest))
