"""The weights of linear layers under autocast, cast together.

Autocast casts each weight and each bias when a layer uses it: for a GPU, eight small kernels per
block, and as many in the backward. Here one operator casts those of a stage.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from .caches import caches_allowed
from .precision import autocast_dtype

# Weight and bias of linear layers, in the dtype of autocast.
WeightCasts = Mapping[nn.Module, tuple[Tensor, Tensor | None]]
# (Not passed from module to module: these may be replaced, and hooks see their arguments.)
_CASTS: ContextVar[WeightCasts | None] = ContextVar('weight_casts', default=None)


def cast_weights(
    layers: Iterable[tuple[nn.Linear, Tensor | None]], device: torch.device
) -> WeightCasts:
    """Weights and biases as autocast casts them, by one operator; made anew in each call.

    Values and gradients are those of autocast's own casts, bit for bit. Other layers than plain
    linear ones in float32 are left to autocast, and so is everything where autocast is off, and
    where something traces or transforms the computation (compilers fuse these casts by themselves).

    Args:
        layers: Modules, each with the bias to use.
        device: Where they compute.
    """
    dtype = autocast_dtype(device)
    if dtype is None or dtype == torch.float32 or not caches_allowed():
        return {}
    layers = [(layer, bias) for layer, bias in layers if _is_plain(layer, bias)]
    used = [x for layer, bias in layers for x in (layer.weight, bias) if x is not None]
    casts = iter(_CastTogether.apply(dtype, *used))
    return {layer: (next(casts), None if bias is None else next(casts)) for layer, bias in layers}


@contextmanager
def use_casts(casts: WeightCasts) -> Iterator[None]:
    """A ``with`` block in which :func:`~.linear.linear` takes weights that were cast already."""
    before = _CASTS.set(casts)
    try:
        yield
    finally:
        _CASTS.reset(before)


def cast_weights_of(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a layer that were cast for the ``with`` block; None if they were not."""
    casts = _CASTS.get()
    return casts.get(layer) if casts else None


def _is_plain(layer: nn.Linear, bias: Tensor | None) -> bool:
    """Whether a layer is nothing but a product with its weight in float32, and no hook sees it."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.weight.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
    )


class _CastTogether(torch.autograd.Function):
    """Tensors of one dtype in another one."""

    @staticmethod
    def forward(ctx, dtype, *tensors):
        ctx.set_materialize_grads(False)
        ctx.dtype = tensors[0].dtype if tensors else None
        casts = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
        if casts:
            torch._foreach_copy_(casts, tensors)
        # Else layers would compute the gradients of frozen weights beside others.
        needed = zip(casts, ctx.needs_input_grad[1:], strict=True)
        ctx.mark_non_differentiable(*(each for each, need in needed if not need))
        return tuple(casts)

    @staticmethod
    def backward(ctx, *grads):
        # None: of frozen weights, or of a layer that was not called.
        casts = iter(_CastTogether.apply(ctx.dtype, *(grad for grad in grads if grad is not None)))
        return None, *(None if grad is None else next(casts) for grad in grads)
