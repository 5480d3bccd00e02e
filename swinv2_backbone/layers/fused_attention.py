"""Fused attention: the operator, its derivatives, and when it runs.

B images, H W map size in tokens, T = B * H * W, nH heads, d channels per head, C = nH * d,
N tokens per window.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .caches import transforms_active
from .reference_attention import attend_reference
from .sdpa_attention import attend_by_sdpa, attend_by_sdpa_backward
from .windows import WindowGrid

IMPLEMENTATION_VARIABLE = 'SWINV2_ATTENTION'
# 'fast' and 'plain' are the names that versions up to 0.1 had.
IMPLEMENTATIONS = {'fused': True, 'fast': True, 'reference': False, 'plain': False}


def use_fused_attention() -> bool:
    """Whether the fused attention runs, instead of the reference attention.

    ``SWINV2_ATTENTION=reference`` in the environment turns it off, for debugging. Exporters
    (torch.export, torch.onnx, torch.jit.trace) always get the reference attention, whose operators
    every runtime has, and so do forward-mode differentiation and the transforms of torch.func.

    Raises:
        ValueError: If the variable is neither 'fused' nor 'reference'.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or transforms_active():
        return False
    name = os.environ.get(IMPLEMENTATION_VARIABLE, 'fused')
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"{IMPLEMENTATION_VARIABLE}: got {name!r}, allowed: 'fused' or 'reference'"
        )
    return IMPLEMENTATIONS[name]


def attend(
    qkv: Tensor, scale: Tensor, bias: Tensor, grid: WindowGrid, windows_at_once: int | None = None
) -> Tensor:
    """Scaled cosine attention within windows, of all tokens of a batch of maps.

    The result is that of :func:`~.reference_attention.attend_reference`. The products of q and k
    take unit vectors rounded to the inputs' dtype (q and k have that rounding already), and
    accumulate in float32.

    It is a single operator of torch, for its compiler, its counter of FLOPs and its profiler, too.

    Args:
        qkv: Queries, keys and values of the tokens, ``(T, 3, nH, d)``.
        scale: ``(nH, 1, 1)``, factor of the cosine similarities.
        bias: ``(nH, N, N)``, [head, query, key].
        grid: Partition of each map into windows.
        windows_at_once: Windows computed at a time, in forward and backward. None: as many as
            run fastest.

    Returns:
        ``(T, C)`` in the dtype of qkv, differentiable any number of times.
    """
    windows = grid.size, grid.window, grid.shifted, windows_at_once
    return _attend_operator(qkv, scale, bias, *windows)


def _keep_inputs(ctx, inputs, output):
    # Nothing of size n x nH x N x N: the backward computes the logits again.
    ctx.save_for_backward(*inputs[:3])
    ctx.windows = inputs[3:]


def _backward_of_operator(ctx, grad_out):
    inputs = ctx.saved_tensors
    if torch.is_grad_enabled():  # Under create_graph=True: the gradient is to be differentiated.
        grads = _differentiable_backward(grad_out, inputs, *ctx.windows[:3])
    else:
        grads = _attend_backward_operator(grad_out.contiguous(), *inputs, *ctx.windows)
    return *grads, None, None, None, None


def _differentiable_backward(
    grad_out: Tensor,
    inputs: Sequence[Tensor],
    size: Sequence[int],
    window: Sequence[int],
    shifted: bool,
) -> list[Tensor | None]:
    """Gradients by the reference attention, whose operators have derivatives of any order."""
    qkv, scale, bias = inputs
    grid = WindowGrid((size[0], size[1]), (window[0], window[1]), shifted)
    out = attend_reference(qkv.flatten(1).unflatten(0, (-1, *size)), scale, bias, grid)
    wanted = [x for x in inputs if x.requires_grad]
    grads = iter(torch.autograd.grad(out, wanted, grad_out.view_as(out), create_graph=True))
    return [next(grads) if x.requires_grad else None for x in inputs]


def _operators() -> tuple[Callable, Callable]:
    """Forward and backward as operators of torch, the second being the derivative of the first.

    torch.compile does not look into them: their loops over windows, and all arithmetic on the size
    of the map, stay out of its graph.
    """
    windows = 'SymInt[] size, SymInt[] window, bool shifted, int? windows_at_once'
    # They cache indices and masks, which a CUDA graph of torch.compile would keep in memory that it
    # uses again: it leaves these operators out. (Older versions of torch have no such tag.)
    unsafe = getattr(torch.Tag, 'cudagraph_unsafe', None)
    tags = {'tags': (unsafe,)} if unsafe else {}
    forward = torch.library.custom_op(
        'swinv2_backbone::attend',
        attend_by_sdpa,
        mutates_args=(),
        schema=f'(Tensor qkv, Tensor scale, Tensor bias, {windows}) -> Tensor',
        **tags,
    )
    backward = torch.library.custom_op(
        'swinv2_backbone::attend_backward',
        attend_by_sdpa_backward,
        mutates_args=(),
        schema=f'(Tensor grad_out, Tensor qkv, Tensor scale, Tensor bias, {windows}) '
        '-> (Tensor, Tensor, Tensor)',
        **tags,
    )
    # For tracers: shapes and dtypes of the results.
    forward.register_fake(lambda qkv, *_: qkv.new_empty(qkv.shape[0], qkv.shape[2] * qkv.shape[3]))
    backward.register_fake(lambda grad_out, *inputs: tuple(map(torch.empty_like, inputs[:3])))
    forward.register_autograd(_backward_of_operator, setup_context=_keep_inputs)
    return forward, backward


_attend_operator, _attend_backward_operator = _operators()


def _flops(qkv_shape: Sequence[int], size: Sequence[int], window: Sequence[int]) -> int:
    """Floating-point operations of one product of N x N by N x d for all windows and heads."""
    tokens, _, heads, width = qkv_shape
    windows = math.prod(-(-s // w) for s, w in zip(size, window, strict=True))
    images = tokens // math.prod(size)
    return 2 * images * windows * heads * math.prod(window) ** 2 * width


@register_flop_formula(torch.ops.swinv2_backbone.attend)
def _flops_forward(qkv: Sequence[int], scale: Any, bias: Any, *windows: Any, **_: Any) -> int:
    return 2 * _flops(qkv, *windows[:2])


@register_flop_formula(torch.ops.swinv2_backbone.attend_backward)
def _flops_backward(grad_out: Any, *inputs: Any, **_: Any) -> int:
    # The logits again, and the gradients of weights, queries, keys and values.
    return 5 * _flops(inputs[0], *inputs[3:5])
