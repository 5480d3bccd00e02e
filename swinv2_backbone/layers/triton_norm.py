"""Triton kernels for NVIDIA GPUs: LayerNorm of a branch, drop path and residual addition at once.

R tokens of all maps, C channels. A program computes a tile of ROWS tokens with all their channels,
COLS being C rounded up to a power of 2. Everything is computed in float32, and depends on no order
in which programs run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements of a tile: 16 for each of the 128 threads of a program.
_TILE = 2048
_WARPS = 4
# Programs of the backward per multiprocessor. Each leaves one row of sums to be added up.
_PROGRAMS = 4
# What stands for the number of multiprocessors where there is no GPU, as in Triton's interpreter.
_MULTIPROCESSORS_ELSEWHERE = 2
# Tile of the kernel that adds up rows of sums.
_SUM_ROWS, _SUM_COLS = 64, 32


@triton.jit
def load_normalized(maps, at, inside, eps, C: tl.constexpr):
    """Rows of a map at mean 0 and variance 1, and 1 / their standard deviation, in float32."""
    values = tl.load(maps + at, mask=inside, other=0.0).to(tl.float32)
    # (Not the mean of squares minus the squared mean, which cancels.)
    centered = tl.where(inside, values - tl.sum(values, 1)[:, None] / C, 0.0)
    rsigma = tl.rsqrt(tl.sum(centered * centered, 1) / C + eps)[:, None]
    return centered * rsigma, rsigma


@triton.jit
def load_factor(draws, row, rows, rows_per_image, keep, factor):
    """What drop path multiplies each row's branch by: `factor`, or 0 if that image's is dropped."""
    draw = tl.load(draws + row // rows_per_image, mask=row < rows, other=1.0)
    return tl.where(draw < keep, factor, 0.0)[:, None]


@triton.jit(do_not_specialize=['rows', 'rows_per_image'])
def forward(
    x, branch, weight, bias, draws, out, rows, rows_per_image, keep, factor, eps,
    C: tl.constexpr, DROP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """``x + factor * (normalized(branch) * weight + bias)``. Programs: (R / ROWS,)."""
    row, col = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    inside = (row < rows)[:, None] & (col < C)[None, :]
    at = row.to(tl.int64)[:, None] * C + col[None, :]
    normalized, _ = load_normalized(branch, at, inside, eps, C)
    w = tl.load(weight + col, mask=col < C, other=0.0).to(tl.float32)
    b = tl.load(bias + col, mask=col < C, other=0.0).to(tl.float32)
    added = normalized * w[None, :] + b[None, :]
    if DROP:
        added *= load_factor(draws, row, rows, rows_per_image, keep, factor)
    total = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + added
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=['rows', 'rows_per_image'])
def backward(
    grad_out, branch, weight, draws, grad_branch, sums, rows, rows_per_image, keep, factor, eps,
    C: tl.constexpr, DROP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Gradient of the branch, and this program's part of those of weight and bias.

    Programs: (any number,), which share the tiles. `sums`: ``(programs, 2, C)``, [weight, bias].
    """
    col = tl.arange(0, COLS)
    weight_sums = tl.zeros((ROWS, COLS), tl.float32)
    bias_sums = tl.zeros((ROWS, COLS), tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (col < C)[None, :]
        at = row.to(tl.int64)[:, None] * C + col[None, :]
        normalized, rsigma = load_normalized(branch, at, inside, eps, C)
        grad = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
        if DROP:
            grad *= load_factor(draws, row, rows, rows_per_image, keep, factor)
        weight_sums += grad * normalized
        bias_sums += grad
        # (In every iteration, from the cache: kept, it would spill registers.)
        w = tl.load(weight + col, mask=col < C, other=0.0).to(tl.float32)
        grad *= w[None, :]
        # Neither a shift nor a scaling of its input changes the norm's output: the gradient has no
        # part along either.
        along_ones = tl.sum(grad, 1)[:, None] / C
        along_output = tl.sum(grad * normalized, 1)[:, None] / C
        grad = rsigma * (grad - along_ones - normalized * along_output)
        tl.store(grad_branch + at, grad.to(grad_branch.dtype.element_ty), mask=inside)
    sums += tl.program_id(0) * 2 * C
    tl.store(sums + col, tl.sum(weight_sums, 0), mask=col < C)
    tl.store(sums + C + col, tl.sum(bias_sums, 0), mask=col < C)


@triton.jit
def add_rows(sums, out, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    """``sums.sum(0)``, always in the same order: ``(rows, cols) -> (cols,)``.

    Programs: (cols / COLS,).
    """
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (col < cols)[None, :]
        total += tl.load(sums + row[:, None] * cols + col[None, :], mask=inside, other=0.0)
    tl.store(out + col, tl.sum(total, 0).to(out.dtype.element_ty), mask=col < cols)


def add_normed_by_triton(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    draws: Tensor | None,
    keep: float,
    eps: float,
) -> Tensor:
    """As :func:`~.fused_norm.add_normed`: one launch."""
    x, branch = x.contiguous(), branch.contiguous()
    out = torch.empty_like(x, dtype=torch.promote_types(x.dtype, branch.dtype))
    tiles, sizes, constants = _shape(branch, draws)
    draws = None if draws is None else draws.contiguous()
    numbers = *sizes, *_keep_and_factor(keep), eps
    with torch.cuda.device_of(branch):
        forward[(tiles,)](x, branch, weight, bias, draws, out, *numbers, **constants)
    return out


def add_normed_backward_by_triton(
    grad_out: Tensor, branch: Tensor, weight: Tensor, draws: Tensor | None, keep: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the branch ``(B, ..., C)``, and of weight and bias ``(2, C)``: two launches.

    They are the same in every run, bit for bit.
    """
    grad_out, branch = grad_out.contiguous(), branch.contiguous()
    channels = branch.shape[-1]
    tiles, sizes, constants = _shape(branch, draws)
    draws = None if draws is None else draws.contiguous()
    numbers = *sizes, *_keep_and_factor(keep), eps
    programs = min(tiles, _PROGRAMS * _multiprocessors(branch.device))
    grad_branch = torch.empty_like(branch)
    sums = branch.new_empty(programs, 2 * channels, dtype=torch.float32)
    grad_affine = weight.new_empty(2, channels)
    with torch.cuda.device_of(branch):
        backward[(programs,)](
            grad_out, branch, weight, draws, grad_branch, sums, *numbers, **constants
        )
        add_rows[(triton.cdiv(2 * channels, _SUM_COLS),)](
            sums, grad_affine, *sums.shape, ROWS=_SUM_ROWS, COLS=_SUM_COLS, num_warps=_WARPS
        )
    return grad_branch, grad_affine


def _shape(branch: Tensor, draws: Tensor | None) -> tuple[int, tuple[int, int], dict]:
    """The number of tiles, rows in all and per image, and the constants of a kernel."""
    channels = branch.shape[-1]
    rows = branch.numel() // channels
    columns = triton.next_power_of_2(channels)
    height = max(1, _TILE // columns)
    constants = dict(C=channels, DROP=draws is not None, ROWS=height, COLS=columns)
    sizes = rows, rows // len(branch)
    return triton.cdiv(rows, height), sizes, dict(constants, num_warps=_WARPS)


def _keep_and_factor(keep: float) -> tuple[float, float]:
    return keep, 1 / keep if keep else 0.0


def _multiprocessors(device: torch.device) -> int:
    if device.type != 'cuda':
        return _MULTIPROCESSORS_ELSEWHERE
    return torch.cuda.get_device_properties(device).multi_processor_count
