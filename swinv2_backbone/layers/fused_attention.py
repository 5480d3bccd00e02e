"""Fused attention: the operator, its derivatives, and when it runs.

B images, H W map size in tokens, T = B * H * W, nH heads, d channels per head, C = nH * d,
N tokens per window.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .caches import exporting, transforms_active
from .position_bias import expand_table
from .precision import autocast_dtype
from .reference_attention import attend_reference
from .sdpa_attention import attend_by_sdpa, attend_by_sdpa_backward
from .selection import (
    IMPLEMENTATION_VARIABLE,
    TRITON_DTYPES,
    configured_implementation,
    triton_obstacle,
)
from .windows import WindowGrid

TRITON_HEAD_WIDTHS = (16, 32, 64)


class Choice(NamedTuple):
    """An implementation of the attention, 'reference', 'sdpa' or 'triton', and why it runs."""

    name: str
    reason: str


def use_fused_attention() -> bool:
    """Whether a fused attention runs, instead of the reference attention.

    ``SWINV2_ATTENTION=reference`` in the environment turns it off, for debugging. Exporters
    (torch.export, torch.onnx, torch.jit.trace) always get operators that every runtime has
    (:mod:`~.exported_attention`), and forward-mode differentiation and the transforms of torch.func
    the reference attention.

    Raises:
        ValueError: If the variable names no implementation.
    """
    if exporting() or transforms_active():
        return False
    return configured_implementation() != 'reference'


def choose_attention(x: Tensor, head_width: int, dropout: bool = False) -> Choice:
    """The implementation of the attention for a map.

    Args:
        x: Input of the attention; autocast changes the dtype of its queries and keys.
        head_width: Channels per head.
        dropout: Whether attention weights are to be dropped.

    Raises:
        ValueError: If ``SWINV2_ATTENTION`` names no implementation.
        RuntimeError: If it names one that cannot run.
    """
    if not use_fused_attention():
        return Choice(
            'reference', f'{IMPLEMENTATION_VARIABLE}=reference, an exporter or a transform'
        )
    if dropout:
        return Choice('reference', 'the fused ones have no attention weights to drop')
    configured = configured_implementation()
    if configured == 'sdpa':
        return Choice('sdpa', f'{IMPLEMENTATION_VARIABLE}=sdpa')
    if configured is None and x.device.type != 'cuda':
        return Choice('sdpa', f'the Triton kernels are for NVIDIA GPUs, got {x.device.type}')
    obstacle = _triton_obstacle(x, head_width)
    if obstacle is None:
        reason = 'an NVIDIA GPU, in half precision'
        return Choice('triton', f'{IMPLEMENTATION_VARIABLE}=triton' if configured else reason)
    if configured == 'triton':
        raise RuntimeError(f'{IMPLEMENTATION_VARIABLE}=triton: {obstacle}')
    return Choice('sdpa', obstacle)


def _triton_obstacle(x: Tensor, head_width: int) -> str | None:
    """Why the Triton kernels cannot run, if they cannot."""
    obstacle = triton_obstacle(x.device)
    if obstacle is not None:
        return obstacle
    dtype = (autocast_dtype(x.device) if x.dtype == torch.float32 else None) or x.dtype
    if dtype not in TRITON_DTYPES:
        return f'the Triton kernels are for bfloat16 and float16, got {dtype}'
    if head_width not in TRITON_HEAD_WIDTHS:
        return f'the Triton kernels are for heads of 16, 32 or 64 channels, got {head_width}'
    return None


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
        bias: ``(nH, N, N)``, [head, query, key]. Or the table, ``(nH, (2 Wh - 1) * (2 Ww - 1))``:
            then Triton kernels compute it, otherwise SDPA; see :func:`choose_attention`.
        grid: Partition of each map into windows.
        windows_at_once: Windows computed at a time, in forward and backward. None: as many as
            run fastest.

    Returns:
        ``(T, C)`` in the dtype of qkv, differentiable any number of times.
    """
    windows = grid.size, grid.window, grid.shifted, windows_at_once
    operator = _attend_operator if bias.ndim == 3 else _attend_table_operator
    return operator(qkv, scale, bias, *windows)


def _keep_inputs(ctx, inputs, output):
    # Nothing of size n x nH x N x N: the backward computes the logits again.
    ctx.save_for_backward(*inputs[:3])
    ctx.windows = inputs[3:]


def _backward_of(operator: Callable) -> Callable:
    def backward(ctx, grad_out):
        inputs = ctx.saved_tensors
        # Under create_graph=True the gradient is to be differentiated.
        if torch.is_grad_enabled():
            grads = _differentiable_backward(grad_out, inputs, *ctx.windows[:3])
        else:
            grads = operator(grad_out.contiguous(), *inputs, *ctx.windows)
        return *grads, None, None, None, None

    return backward


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
    if bias.ndim == 2:
        bias = expand_table(bias, grid.window)
    out = attend_reference(qkv.flatten(1).unflatten(0, (-1, *size)), scale, bias, grid)
    wanted = [x for x in inputs if x.requires_grad]
    grads = iter(torch.autograd.grad(out, wanted, grad_out.view_as(out), create_graph=True))
    return [next(grads) if x.requires_grad else None for x in inputs]


def _operators(name: str, forward: Callable, backward: Callable) -> tuple[Callable, Callable]:
    """Forward and backward as operators of torch, the second being the derivative of the first.

    torch.compile does not look into them: their loops over windows, and all arithmetic on the size
    of the map, stay out of its graph.
    """
    windows = 'SymInt[] size, SymInt[] window, bool shifted, int? windows_at_once'
    # SDPA's cache indices and masks, which a CUDA graph of torch.compile would keep in memory that
    # it uses again: it leaves these operators out. (Older versions of torch have no such tag.)
    unsafe = getattr(torch.Tag, 'cudagraph_unsafe', None)
    tags = {'tags': (unsafe,)} if unsafe and name == 'attend' else {}
    forward = torch.library.custom_op(
        f'swinv2_backbone::{name}',
        forward,
        mutates_args=(),
        schema=f'(Tensor qkv, Tensor scale, Tensor bias, {windows}) -> Tensor',
        **tags,
    )
    backward = torch.library.custom_op(
        f'swinv2_backbone::{name}_backward',
        backward,
        mutates_args=(),
        schema=f'(Tensor grad_out, Tensor qkv, Tensor scale, Tensor bias, {windows}) '
        '-> (Tensor, Tensor, Tensor)',
        **tags,
    )
    # For tracers: shapes and dtypes of the results.
    forward.register_fake(lambda qkv, *_: qkv.new_empty(qkv.shape[0], qkv.shape[2] * qkv.shape[3]))
    backward.register_fake(lambda grad_out, *inputs: tuple(map(torch.empty_like, inputs[:3])))
    forward.register_autograd(_backward_of(backward), setup_context=_keep_inputs)
    register_flop_formula(getattr(torch.ops.swinv2_backbone, name))(_flops_forward)
    register_flop_formula(getattr(torch.ops.swinv2_backbone, f'{name}_backward'))(_flops_backward)
    return forward, backward


def _flops(qkv_shape: Sequence[int], size: Sequence[int], window: Sequence[int]) -> int:
    """Floating-point operations of one product of N x N by N x d for all windows and heads."""
    tokens, _, heads, width = qkv_shape
    windows = math.prod(-(-s // w) for s, w in zip(size, window, strict=True))
    images = tokens // math.prod(size)
    return 2 * images * windows * heads * math.prod(window) ** 2 * width


def _flops_forward(qkv: Sequence[int], scale: Any, bias: Any, *windows: Any, **_: Any) -> int:
    return 2 * _flops(qkv, *windows[:2])


def _flops_backward(grad_out: Any, *inputs: Any, **_: Any) -> int:
    # The logits again, and the gradients of weights, queries, keys and values.
    return 5 * _flops(inputs[0], *inputs[3:5])


# Triton is imported when it first runs.
def _attend_by_triton(*inputs: Any) -> Tensor:
    from .triton_attention import attend_by_triton

    return attend_by_triton(*inputs)


def _attend_by_triton_backward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    from .triton_attention import attend_by_triton_backward

    return attend_by_triton_backward(*inputs)


_attend_operator, _ = _operators('attend', attend_by_sdpa, attend_by_sdpa_backward)
_attend_table_operator, _ = _operators(
    'attend_table', _attend_by_triton, _attend_by_triton_backward
)
