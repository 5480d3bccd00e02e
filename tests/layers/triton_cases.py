"""Cases for the Triton kernels, for a process of its own: with TRITON_INTERPRET=1 on a CPU.

Usage: python -m tests.layers.triton_cases kernels FIRST COUNT | timm | model | compile
It prints a line for each case, and fails at the first that is not as accurate as it must be.
"""

import os
import random
import sys

os.environ['TRITON_INTERPRET'] = '1'  # Before the first kernel is defined.

import torch
import torch.nn.functional as F

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers import triton_attention
from swinv2_backbone.layers.fused_attention import attend
from swinv2_backbone.layers.position_bias import expand_table
from swinv2_backbone.layers.reference_attention import attend_reference
from swinv2_backbone.layers.windows import WindowGrid
from tests.helpers.models import SMALL_ARCH, randomize_parameters
from tests.helpers.tolerance import relative_error

NAMES = 'output', 'qkv', 'scale', 'table'
# Of the output, and of the gradient of qkv. The unit roundoff of bfloat16 is 2e-3, and the mean of
# many roundings to nearest is below u / sqrt(3) = 1.1e-3. The output has two of them, of weights
# and its own; the gradient about four: of weights, their gradients, unit vectors, its own.
# (float32 is not for use: there, a wrong formula cannot hide behind rounding.)
ROUNDINGS = {
    torch.bfloat16: (2e-3, 4e-3),
    torch.float16: (2.5e-4, 5e-4),
    torch.float32: (2e-5, 4e-5),
}
# Of the gradients of scale and table, of which nothing is rounded below float32. They are sums over
# tokens that may cancel: hundredfold in a scale's, a single number.
SUMS = 5e-3


def poison(allocate):
    """An allocation whose memory holds NaN."""

    def poisoned(*args, **kwargs):
        memory = allocate(*args, **kwargs)
        return memory.fill_(torch.nan) if memory.is_floating_point() else memory

    return poisoned


def random_case(seed):
    """Map, window, shift, heads, width, images, dtype."""
    draw = random.Random(seed)
    dtype = draw.choice([torch.bfloat16, torch.float16, torch.float32])
    large = draw.random() < 0.15  # More than one tile of keys.
    sides = (9, 19) if large else (1, 12)
    window = draw.randint(*sides), draw.randint(*sides)
    size = tuple(draw.randint(1, w + 8 if large else 2 * w + 3) for w in window)
    heads, width = (1, 16) if large else (draw.randint(1, 2), draw.choice([16, 32, 64]))
    return size, window, draw.random() < 0.7, heads, width, draw.randint(1, 2), dtype


def check_kernels(seed):
    size, window, shifted, heads, width, images, dtype = random_case(seed)
    torch.manual_seed(seed)
    grid = WindowGrid.for_map(size, window, shifted)
    offsets = (2 * grid.window[0] - 1) * (2 * grid.window[1] - 1)
    qkv = torch.randn(images * size[0] * size[1], 3, heads, width).to(dtype)
    qkv[:: max(2, len(qkv) // 3), 1] = 0  # Keys without a length, as of blank tokens.
    scale, table = 10 + 90 * torch.rand(heads, 1, 1), 16 * torch.rand(heads, offsets)
    grad_out = torch.randn(len(qkv), heads * width).to(dtype)
    expected = reference(qkv, scale, table, grid, grad_out)
    arguments = qkv, scale, table, grid.size, grid.window, grid.shifted
    allocate = torch.Tensor.new_empty, torch.empty_like
    torch.Tensor.new_empty, torch.empty_like = map(poison, allocate)
    try:
        out = triton_attention.attend_by_triton(*arguments)
        grads = triton_attention.attend_by_triton_backward(grad_out, *arguments)
    finally:
        torch.Tensor.new_empty, torch.empty_like = allocate
    errors = []
    bounds = *ROUNDINGS[dtype], SUMS, SUMS
    for name, got, exact, bound in zip(NAMES, (out, *grads), expected, bounds, strict=True):
        assert got.isfinite().all(), f'{name} is not finite'
        # (A gradient that is exactly 0, as with one key per window, has no relative error.)
        error = (got.double() - exact).norm() / exact.norm().clamp(min=1e-3 * len(qkv) ** 0.5)
        errors.append(f'{name} {error:.1e}')
        assert error <= bound, f'seed {seed}, {random_case(seed)}: {errors}, allowed {bound}'
    print(seed, *random_case(seed), *errors, flush=True)


def reference(qkv, scale, table, grid, grad_out):
    """Output and gradients in float64."""
    inputs = [x.double().requires_grad_() for x in (qkv, scale, table)]
    maps = inputs[0].flatten(1).unflatten(0, (-1, *grid.size))
    out = attend_reference(maps, inputs[1], expand_table(inputs[2], grid.window), grid)
    out = out.flatten(0, 2)
    return out, *torch.autograd.grad(out, inputs, grad_out.double())


def check_against_timm():
    """In bfloat16, everything is closer to float64 than by timm's formula under autocast."""
    torch.manual_seed(0)
    for window in (8, 12):
        grid = WindowGrid.for_map((2 * window, window), (window, window), False)
        qkv = torch.randn(2 * window**2, 3, 2, 32).to(torch.bfloat16)
        scale, table = 10 + 90 * torch.rand(2, 1, 1), 16 * torch.rand(2, (2 * window - 1) ** 2)
        grad_out = torch.randn(len(qkv), 64).to(torch.bfloat16)
        expected = reference(qkv, scale, table, grid, grad_out)
        arguments = qkv, scale, table, grid.size, grid.window, grid.shifted
        ours = (
            triton_attention.attend_by_triton(*arguments),
            *triton_attention.attend_by_triton_backward(grad_out, *arguments),
        )
        inputs = [x.clone().requires_grad_() for x in (qkv, scale, table)]
        out = attend_as_timm(*inputs, grid)
        theirs = out, *torch.autograd.grad(out, inputs, grad_out)
        for name, *results in zip(NAMES, ours, theirs, expected, strict=True):
            error, other = (relative_error(result, results[2]) for result in results[:2])
            print(f'window {window}, {name}: {error:.1e}, as timm {other:.1e}')
            assert error < other


def attend_as_timm(qkv, scale, table, grid):
    """Attention as timm (1.0) writes it, under autocast."""
    windows = grid.split(qkv.flatten(1).unflatten(0, (-1, *grid.size))).unflatten(-1, qkv.shape[1:])
    q, k, v = windows.permute(2, 0, 3, 1, 4)
    with torch.autocast('cpu', torch.bfloat16):
        cosines = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        weights = (cosines * scale + expand_table(table, grid.window)).softmax(-1)
        attended = weights @ v
    return grid.merge(attended.transpose(1, 2).flatten(2)).flatten(0, 2)


def check_model():
    """The backbone with the kernels and with SDPA, both against float64: forward and backward."""
    # Stages of several windows, shifted and padded; heads of 16 channels.
    model = randomize_parameters(
        SwinTransformerV2(SMALL_ARCH, window_size=5, drop_path_rate=0.0)
    ).train()
    image, results = torch.randn(1, 3, 60, 44), {}
    for name in ('triton', 'sdpa', 'reference'):
        os.environ['SWINV2_ATTENTION'] = name
        exact = name == 'reference'
        results[name] = run(model.double() if exact else model, image, not exact)
    errors = {
        name: [
            relative_error(a, b) for a, b in zip(results[name], results['reference'], strict=True)
        ]
        for name in ('triton', 'sdpa')
    }
    print(errors)
    for ours, theirs in zip(errors['triton'], errors['sdpa'], strict=True):
        assert ours <= 1.5 * theirs, errors


def run(model, image, autocast):
    """Maps, and gradients by name."""
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        maps = model(image.to(next(model.parameters()).dtype))
    torch.manual_seed(1)
    sum((out * torch.randn(out.shape).to(out)).sum() for out in maps).backward()
    return maps, {name: p.grad.clone() for name, p in model.named_parameters()}


def check_compile():
    """torch.compile takes the operator as one node; second derivatives are the reference's."""
    grid = WindowGrid.for_map((5, 4), (3, 3), True)
    inputs = [torch.randn(20, 3, 2, 16), 5 + torch.rand(2, 1, 1), torch.rand(2, 25)]
    inputs = [x.to(torch.bfloat16) if x.ndim == 4 else x for x in inputs]
    inputs = [x.requires_grad_() for x in inputs]
    compiled = torch.compile(lambda *x: attend(*x, grid), backend='aot_eager', fullgraph=True)
    for function in (compiled, lambda *x: attend(*x, grid)):
        out = function(*inputs)
        grads = torch.autograd.grad(out.float().square().sum(), inputs)
        print([x.float().norm().item() for x in (out, *grads)])
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    second = []
    for tensors, bias in ((inputs, inputs[2]), (doubles, expand_table(doubles[2], (3, 3)))):
        out = attend(*tensors[:2], bias, grid)
        [grad] = torch.autograd.grad(out.double().square().sum(), tensors[2], create_graph=True)
        second.append(torch.autograd.grad(grad.square().sum(), tensors))
    assert relative_error(second[0], second[1]) < 0.05
    os.environ['SWINV2_ATTENTION'] = 'triton'
    model = randomize_parameters(SwinTransformerV2(SMALL_ARCH, window_size=3)).eval()
    model, image = model.to(torch.bfloat16), torch.randn(1, 3, 32, 32).to(torch.bfloat16)
    with torch.no_grad():
        expected = model(image)
        got = torch.compile(model, backend='aot_eager', fullgraph=True)(image)
    assert all(map(torch.equal, got, expected))


if __name__ == '__main__':
    torch.set_num_threads(1)
    what, *arguments = sys.argv[1:]
    if what == 'kernels':
        first, count = map(int, arguments)
        for seed in range(first, first + count):
            check_kernels(seed)
    else:
        checks = {'timm': check_against_timm, 'model': check_model, 'compile': check_compile}
        checks[what]()
