"""Compare attention and network on a device with float64: prints a line of JSON per check.

All memory that is allocated without a value is NaN, so that an element that nobody writes is found:
a NaN passes no check. In a process of its own: after a kernel's fault, CUDA answers no more.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import math
import os
import random
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_backbone.layers.fused_norm import add_normed
from swinv2_backbone.layers.position_bias import expand_table
from swinv2_backbone.layers.reference_attention import attend_reference
from swinv2_backbone.layers.triton_attention import attend_by_triton, attend_by_triton_backward
from swinv2_backbone.layers.windows import WindowGrid
from tools.benchmarking.cases import Case
from tools.benchmarking.device import uninitialized_memory_is_nan
from tools.benchmarking.networks import build_network
from tools.benchmarking.steps import relative_error

# Relative errors in bf16, of logits with scales of 10 to 100; other dtypes in proportion to their
# rounding.
_BOUNDS = {'output': 2e-3, 'gradient of qkv': 4e-3, 'of scale': 5e-3, 'of table': 5e-3}
# As many roundings more as the reference attention has, whose error grows with their square root:
# 16 times as many; and 8 units for a reference that is exact by chance.
_FACTOR, _UNITS = 4.0, 8.0
# Terms of a float32 sum over rows, with random signs: far fewer than this squared.
_SUM_UNITS = 64.0
_FIRST = 10
# Of what a step returns.
_PARTS = {'maps': slice(4), 'gradients': slice(4, None)}
_SIZES = {8: (200, 264), 16: (256, 300)}
_DRY_SIZES = {8: (40, 68)}


def _show(check: str, where: str, error: float, bound: float) -> bool:
    passed = error <= bound  # Not so for NaN.
    # (NaN and infinity are not in JSON.)
    shown = error if math.isfinite(error) else 1e30
    record = dict(check=check, where=where, error=shown, bound=bound, passed=passed)
    print(json.dumps(record), flush=True)
    return passed


def random_case(rng: random.Random, largest: int) -> tuple:
    """Map, window, shift, batch, heads, width and dtype; every second map needs padding."""
    window = rng.choice([7, 8, 12, 16, 24, rng.randint(1, 24)])
    window = window, rng.choice([window, window, rng.randint(1, 24)])
    window = tuple(min(side, largest) for side in window)
    size = tuple(
        max(side, rng.choice([side * rng.randint(1, 3), rng.randint(side, 3 * side)]))
        for side in window
    )
    rest = rng.random() < 0.7, rng.randint(1, 3), rng.choice([1, 3, 4]), rng.choice([16, 32, 64])
    return size, window, *rest, rng.choice([torch.bfloat16, torch.float16])


def check_attention(case: tuple, device: str) -> bool:
    """One random case: the output, and every gradient."""
    size, window, shifted, batch, heads, width, dtype = case
    generator = torch.Generator().manual_seed(hash(case[:6]) % 2**31)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    grid = WindowGrid(size, window, shifted)
    tokens, offsets = batch * math.prod(size), math.prod(2 * side - 1 for side in window)
    qkv = normal(tokens, 3, heads, width).to(dtype)
    qkv[::17, 1] = 0  # Keys of blank tokens.
    scale = 10 ** (1 + torch.rand(heads, 1, 1, generator=generator))
    inputs = qkv, scale, 16 * normal(heads, offsets).sigmoid()
    grad = normal(tokens, heads * width).to(dtype)
    exact = _with_gradients(_reference, [x.double() for x in inputs], grad.double(), grid)
    windows = *(x.to(device) for x in inputs), size, window, shifted
    with uninitialized_memory_is_nan():
        got = attend_by_triton(*windows), *attend_by_triton_backward(grad.to(device), *windows)
    where = f'map {size}, window {window}, shift {shifted}, batch {batch}, {heads} x {width}'
    ratio = torch.finfo(dtype).eps / torch.finfo(torch.bfloat16).eps
    passed = True
    for (name, bound), a, b in zip(_BOUNDS.items(), got, exact, strict=True):
        error = relative_error([a], [b])
        passed &= _show(f'attention, {name}, {dtype}', where, error, bound * ratio)
    return passed


def _with_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor, *more: object
) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs, *more)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def _reference(qkv: Tensor, scale: Tensor, table: Tensor, grid: WindowGrid) -> Tensor:
    maps = qkv.flatten(1).unflatten(0, (-1, *grid.size))
    out = attend_reference(maps, scale, expand_table(table, grid.window), grid)
    return out.reshape(len(qkv), -1)


def check_norm(rng: random.Random, device: str) -> bool:
    """The fused end of a residual branch: results are rounded once, sums are in float32."""
    channels, drop = rng.choice([96, 192, 384, 768, 100]), rng.random() < 0.5
    dtype = rng.choice([torch.bfloat16, torch.float16])
    shape = rng.randint(1, 3), rng.randint(1, 9), rng.randint(1, 9), channels
    generator = torch.Generator().manual_seed(rng.randint(0, 2**31))
    x, branch, grad = torch.randn(3, *shape, generator=generator).to(dtype)
    affine = torch.randn(2, channels, generator=generator)
    draws = torch.rand(shape[0], generator=generator) if drop else None
    keep = 0.7 if drop else 1.0

    def exact(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        normed = F.layer_norm(branch, (channels,), weight, bias)
        if drop:
            normed = normed * ((draws < keep) / keep).view(-1, 1, 1, 1)
        return x + normed

    def fused(*inputs: Tensor) -> Tensor:
        return add_normed(*inputs, draws if draws is None else draws.to(device), keep)

    inputs = x, branch, *affine
    expected = _with_gradients(exact, [each.double() for each in inputs], grad.double())
    with uninitialized_memory_is_nan():
        got = _with_gradients(fused, [each.to(device) for each in inputs], grad.to(device))
    # Half of eps is the largest error of a rounding, eps that of Triton's interpreter, which
    # truncates. Sums in float32 add far less.
    half, single = torch.finfo(dtype).eps, _SUM_UNITS * torch.finfo(torch.float32).eps
    names = {
        'output': half,
        'of x': half,
        'of branch': half,
        'of weight': single,
        'of bias': single,
    }
    passed = True
    for (name, bound), a, b in zip(names.items(), got, expected, strict=True):
        # (With all branches dropped their gradients are exactly 0.)
        error = relative_error([a], [b]) if b.any() else a.abs().max().item()
        passed &= _show(f'norm, {name}, {dtype}', f'{shape}, keep {keep}', error, bound)
    return passed


@contextlib.contextmanager
def attention(name: str | None) -> Iterator[None]:
    """A block in which SWINV2_ATTENTION has this value, or the one of the process."""
    with mock.patch.dict(os.environ, {'SWINV2_ATTENTION': name} if name else {}):
        yield


def _step(network, images: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The maps of a network and the gradients of all of its parameters."""
    network.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, dtype, enabled=dtype in (torch.bfloat16, torch.half)):
        maps = network(images)
    sum(each.to(images.dtype).square().mean() for each in maps).backward()
    return [*(each.detach() for each in maps), *(p.grad for p in network.parameters())]


def check_network(window: int, size: tuple[int, int], device: str, arch: str) -> bool:
    """Maps and gradients of the whole network, beside those with the reference attention.

    As with the reference attention on that device, the error must be that of rounding.
    """
    case = Case('train', *size, window, 2, 'fp32')
    network = build_network('ours', case, arch, 0.0)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with attention('reference'):
        exact = _step(copy.deepcopy(network).double(), images.double(), torch.float64)
    network, images = network.to(device), images.to(device)
    passed = True
    for dtype in (torch.bfloat16, torch.float32):
        # (A dry run forces Triton, which is for half precision alone.)
        by_itself = None if dtype == torch.bfloat16 else 'fused'
        found = {}
        for name in ('reference', 'sdpa', by_itself):
            with attention(name), uninitialized_memory_is_nan():
                found[name] = _step(network, images, dtype)
        for name, (kind, part) in itertools.product(('sdpa', by_itself), _PARTS.items()):
            ours, plain = (relative_error(found[n][part], exact[part]) for n in (name, 'reference'))
            bound = _FACTOR * plain + _UNITS * torch.finfo(dtype).eps / 2
            where = f'{size}, window {window}; with the reference attention {plain:.1e}'
            label = 'by itself' if name == by_itself else name
            passed &= _show(f'network, {label}, {kind}, {dtype}', where, ours, bound)
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', choices=['cuda', 'cpu'], required=True)
    parser.add_argument('--dry', action='store_true', help='tiny sizes')
    parser.add_argument('--cases', type=int, default=20, help='random cases of the attention')
    parser.add_argument('--no-network', action='store_true')
    args = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    rng, largest = random.Random(0), 8 if args.dry else 24
    passed = True

    def check_kernels(count: int) -> bool:
        each = [check_attention(random_case(rng, largest), args.device) for _ in range(count)]
        return all(each + [check_norm(rng, args.device) for _ in range(count)])

    # A few first, then the network, then the rest: the time may run out.
    passed &= check_kernels(min(_FIRST, args.cases))
    if not args.no_network:
        for window, size in (_DRY_SIZES if args.dry else _SIZES).items():
            passed &= check_network(window, size, args.device, 'mini' if args.dry else 'tiny')
    passed &= check_kernels(max(0, args.cases - _FIRST))
    sys.exit(not passed)


if __name__ == '__main__':
    main()
