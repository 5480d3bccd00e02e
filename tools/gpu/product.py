"""The kernels of the package, as it launches them: for which windows, head widths and channels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from swinv2_backbone.layers import triton_attention, triton_norm
from tools.benchmarking.cases import ARCHITECTURES
from tools.gpu.launches import Launch, recorded

WINDOWS = (7, 8, 12, 16, 24)
WIDTHS = (16, 32, 64)
DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}
# What the number of programs is computed from; no kernel depends on it.
_MULTIPROCESSORS = 132


def _norms() -> Iterator[tuple[str, Callable[[], object]]]:
    """The residual branches of SwinV2-T, by their channels: with drop path and x in float32, as in
    training under autocast, and without, as in inference in half precision.
    """
    for name, dtype in DTYPES.items():
        for stage in range(4):
            channels = ARCHITECTURES['tiny']['embed_dims'] * 2**stage
            branch, weight = torch.empty(2, 8, 8, channels, dtype=dtype), torch.empty(channels)
            for draws, wide in ((torch.empty(2), True), (None, False)):
                x = branch.float() if wide else branch
                rest = draws, 1.0 if draws is None else 0.9, 1e-5
                yield (
                    f'C {channels}, {name}, x {"fp32" if wide else name}',
                    lambda x=x, b=branch, w=weight, r=rest: (
                        triton_norm.add_normed_by_triton(x, b, w, w, *r),
                        triton_norm.add_normed_backward_by_triton(x, b, w, *r),
                    ),
                )


def _attentions() -> Iterator[tuple[str, Callable[[], object]]]:
    """Square windows, by head width."""
    for name, dtype in DTYPES.items():
        for width in WIDTHS:
            for side in WINDOWS:
                size = 2 * side, 2 * side
                qkv = torch.empty(4 * side**2, 3, 3, width, dtype=dtype)
                inputs = qkv, torch.empty(3, 1, 1), torch.empty(3, (2 * side - 1) ** 2)
                args = *inputs, size, (side, side), True
                grad = torch.empty(len(qkv), 3 * width, dtype=dtype)
                yield (
                    f'window {side}, d {width}, {name}',
                    lambda a=args, g=grad: (
                        triton_attention.attend_by_triton(*a),
                        triton_attention.attend_by_triton_backward(g, *a),
                    ),
                )


def launches_by_use(quick: bool = False) -> dict[Launch, list[str]]:
    """Every different launch, and the cases that need it.

    Args:
        quick: Only the first launch of each kernel, for trying the tools.
    """
    found: dict[Launch, list[str]] = {}
    count = mock.Mock(return_value=_MULTIPROCESSORS)
    with mock.patch.object(triton_norm, '_multiprocessors', count):
        for use, call in itertools.chain(_attentions(), _norms()):
            with recorded() as launches:
                call()
            for launch in launches:
                uses = found.setdefault(launch, [])
                if use not in uses:
                    uses.append(use)
    if quick:
        first = {launch.name: launch for launch in reversed(found)}
        return {launch: uses for launch, uses in found.items() if launch is first[launch.name]}
    return found
