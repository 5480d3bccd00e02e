"""Cases for the Triton kernels, for a process of its own: with TRITON_INTERPRET=1 on a CPU.

Usage: python -m tests.layers.triton_cases kernels FIRST COUNT | timm | model | compile
It prints a line for each case, and fails at the first that is not as accurate as it must be.
"""

import os
import random
import sys

os.environ['TRITON_INTERPRET'] = '1'  # Before the first kernel is defined.

import torch

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers import triton_attention
from swinv2_backbone.layers.fused_attention import attend
from swinv2_backbone.layers.position_bias import expand_table
from swinv2_backbone.layers.reference_attention import attend_reference
from swinv2_backbone.layers.windows import WindowGrid
from tests.helpers.attention import attend_as_timm, attend_exactly, error_in_float32
from tests.helpers.models import SMALL_ARCH, randomize_parameters
from tests.helpers.tolerance import assert_as_accurate, relative_error

NAMES = 'output', 'qkv', 'scale', 'table'
# Relative errors of the output, and of the gradient of qkv. Those in half precision are required:
# 2e-3 and 4e-3 in bfloat16, about what two and four roundings to nearest come to (weights, their
# gradients, unit vectors, the result; each is eps / 5 in the mean), and an eighth in float16, as
# its eps is. In float32 (not for use: there, a wrong formula cannot hide behind rounding) a logit
# of up to 116, a sum of up to 64 terms, is off by 180 u, and a weight by twice that.
_IN_FLOAT32 = 2 * 180 * torch.finfo(torch.float32).eps / 2
ROUNDINGS = {
    torch.bfloat16: (2e-3, 4e-3),
    torch.float16: (2e-3 / 8, 4e-3 / 8),
    torch.float32: (_IN_FLOAT32, 2 * _IN_FLOAT32),
}


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
    expected = attend_exactly(qkv, scale, table, grid, grad_out)
    arguments = qkv, scale, table, grid.size, grid.window, grid.shifted
    allocate = torch.Tensor.new_empty, torch.empty_like
    torch.Tensor.new_empty, torch.empty_like = map(poison, allocate)
    try:
        out = triton_attention.attend_by_triton(*arguments)
        grads = triton_attention.attend_by_triton_backward(grad_out, *arguments)
    finally:
        torch.Tensor.new_empty, torch.empty_like = allocate
    errors = []
    # (A gradient that is exactly 0, as with one key per window, has no relative error.)
    norms = [each.norm().clamp(min=1e-3 * len(qkv) ** 0.5) for each in expected[:2]]
    bounds = [bound * norm for bound, norm in zip(ROUNDINGS[dtype], norms, strict=True)]
    # Of the gradients of scale and table nothing is rounded below float32, whatever the dtype.
    bounds += error_in_float32(qkv, scale, table, grid, grad_out)
    for name, got, exact, bound in zip(NAMES, (out, *grads), expected, bounds, strict=True):
        assert got.isfinite().all(), f'{name} is not finite'
        error = (got.double() - exact).norm()
        errors.append(f'{name} {error / exact.norm():.1e} of {bound / exact.norm():.1e}')
        assert error <= bound, f'seed {seed}, {random_case(seed)}: {errors}'
    print(seed, *random_case(seed), *errors, flush=True)


def check_against_timm():
    """In bfloat16, everything is closer to float64 than by timm's formula under autocast."""
    torch.manual_seed(0)
    for window in (8, 12):
        grid = WindowGrid.for_map((2 * window, window), (window, window), False)
        qkv = torch.randn(2 * window**2, 3, 2, 32).to(torch.bfloat16)
        scale, table = 10 + 90 * torch.rand(2, 1, 1), 16 * torch.rand(2, (2 * window - 1) ** 2)
        grad_out = torch.randn(len(qkv), 64).to(torch.bfloat16)
        expected = attend_exactly(qkv, scale, table, grid, grad_out)
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


def check_model():
    """Under autocast, the backbone with the kernels is as accurate as with the reference."""
    # Stages of several windows, shifted and padded; heads of 16 channels.
    model = randomize_parameters(
        SwinTransformerV2(SMALL_ARCH, window_size=5, drop_path_rate=0.0)
    ).train()
    image, results = torch.randn(1, 3, 60, 44), {}
    for name in ('triton', 'reference'):
        os.environ['SWINV2_ATTENTION'] = name
        results[name] = run(model, image, True)
    exact = run(model.double(), image, False)
    for part, ours, theirs in zip(exact, results['triton'], results['reference'], strict=True):
        print(relative_error(ours, part), 'reference', relative_error(theirs, part))
        assert_as_accurate(ours, theirs, part)


def run(model, image, autocast):
    """Maps, and gradients by name."""
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        maps = model(image.to(next(model.parameters()).dtype))
    torch.manual_seed(1)
    sum((out * torch.randn(out.shape).to(out)).sum() for out in maps).backward()
    return maps, {name: p.grad.clone() for name, p in model.named_parameters()}


def check_second_derivatives(inputs, grid):
    """They are by operators of torch, so that their own error is the measure."""

    def second(function, inputs):
        out = function(*inputs)
        [grad] = torch.autograd.grad(out.square().sum(), inputs[2], create_graph=True)
        return torch.autograd.grad(grad.square().sum(), inputs)

    def reference(qkv, scale, table):
        maps, bias = qkv.flatten(1).unflatten(0, (-1, *grid.size)), expand_table(table, grid.window)
        return attend_reference(maps, scale, bias, grid).flatten(0, 2)

    doubles = [x.detach().double().requires_grad_() for x in inputs]
    got = second(lambda *x: attend(*x, grid), inputs)
    assert_as_accurate(got, second(reference, inputs), second(reference, doubles))


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
    check_second_derivatives(inputs, grid)
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
