"""Norms of maps, and the fused end of a residual branch: the operator, its derivatives, its use.

B images, C channels. Maps are channels-last: ``(B, ..., C)``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .caches import exporting, transforms_active
from .precision import at_least_float32, without_autocast
from .selection import TRITON_DTYPES, configured_implementation, triton_obstacle
from .windows import size_is_unknown


def norm_map(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)``, a LayerNorm or what somebody has put into its place; ``(B, H, W, C)``.

    In graphs for maps of one size all tokens are along one axis: OpenVINO's operator takes the last
    of three axes, not of four, for which OpenVINO makes several operators. (With sizes that are
    unknown, torch.export would take one token for a case of its own.)
    """
    if not exporting() or any(map(size_is_unknown, x.shape[1:3])):
        return norm(x)
    return norm(x.flatten(1, 2)).view_as(x)


def use_fused_norm(x: Tensor, branch: Tensor) -> bool:
    """Whether :func:`add_normed` is to add a branch to a map.

    It is where Triton runs (:func:`~.selection.triton_obstacle`), for branches in half precision.
    As the fused attention, it is not for exporters, forward-mode differentiation and the transforms
    of torch.func, which need operators that torch knows.
    """
    if branch.dtype not in TRITON_DTYPES or x.dtype not in (*TRITON_DTYPES, torch.float32):
        return False
    if exporting() or transforms_active():
        return False
    name = configured_implementation()
    chosen = name == 'triton' or (name is None and x.device.type == 'cuda')
    return chosen and triton_obstacle(x.device) is None


def add_normed(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    draws: Tensor | None = None,
    keep: float = 1.0,
    eps: float = 1e-5,
) -> Tensor:
    """``x + drop_path(layer_norm(branch))`` in one kernel of a GPU, as a single operator of torch.

    Statistics and sums are in float32; the result is rounded once.

    Args:
        x: ``(B, ..., C)``, bfloat16, float16 or float32.
        branch: The same shape, bfloat16 or float16.
        weight: Of the norm, ``(C,)``.
        bias: Likewise.
        draws: float32 ``(B,)``, uniform in [0, 1): images with a draw of `keep` or more lose their
            branch, that of others is divided by `keep`. None: no branch is dropped.
        keep: Probability of keeping a branch.
        eps: Of the norm.

    Returns:
        ``(B, ..., C)``, contiguous, in the wider dtype of x and branch. Differentiable any number
        of times.
    """
    return _add_normed_operator(x, branch, weight, bias, draws, keep, eps)


def _reference(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    draws: Tensor | None,
    keep: float,
    eps: float,
) -> Tensor:
    """The same by operators of torch."""
    with without_autocast(x):
        branch_, weight, bias = (at_least_float32(each) for each in (branch, weight, bias))
        normed = F.layer_norm(branch_, weight.shape, weight, bias, eps)
        if draws is not None:
            factor = (draws < keep).to(normed.dtype) / (keep or 1.0)
            normed = normed * factor.view(-1, *[1] * (x.ndim - 1))
        return (x + normed).to(torch.promote_types(x.dtype, branch.dtype))


def _compute(x: Tensor, *args) -> Tensor:
    from .triton_norm import add_normed_by_triton  # There may be no Triton.

    return add_normed_by_triton(x, *args)


def _compute_backward(grad_out: Tensor, *args) -> tuple[Tensor, Tensor]:
    from .triton_norm import add_normed_backward_by_triton

    return add_normed_backward_by_triton(grad_out, *args)


def _keep_inputs(ctx, inputs, output):
    x, branch, weight, bias, draws, *ctx.constants = inputs
    # The output is a sum: its gradient is that of x, whatever x was.
    ctx.x_dtype = x.dtype
    ctx.save_for_backward(branch, weight, bias, draws)


def _backward_of_operator(ctx, grad_out):
    branch, weight, bias, draws = ctx.saved_tensors
    if torch.is_grad_enabled():  # Under create_graph=True: the gradient is to be differentiated.
        grads = _differentiable_backward(grad_out, branch, weight, bias, draws, *ctx.constants)
    else:
        args = branch, weight, draws, *ctx.constants
        grad_branch, grad_affine = _add_normed_backward_operator(grad_out.contiguous(), *args)
        grads = [grad_branch, *grad_affine.unbind()]
    return grad_out.to(ctx.x_dtype), *grads, None, None, None


def _differentiable_backward(
    grad_out: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, *args
) -> list[Tensor | None]:
    inputs = branch, weight, bias
    out = _reference(torch.zeros_like(grad_out), branch, weight, bias, *args)
    wanted = [each for each in inputs if each.requires_grad]
    if not wanted:  # Only x does.
        return [None] * len(inputs)
    grads = iter(torch.autograd.grad(out, wanted, grad_out, create_graph=True))
    return [next(grads) if each.requires_grad else None for each in inputs]


def _operators() -> tuple[Callable, Callable]:
    """Forward and backward as operators of torch, the second being the derivative of the first."""
    common = 'Tensor? draws, float keep, float eps'
    forward = torch.library.custom_op(
        'swinv2_backbone::add_normed',
        _compute,
        mutates_args=(),
        schema=f'(Tensor x, Tensor branch, Tensor weight, Tensor bias, {common}) -> Tensor',
    )
    backward = torch.library.custom_op(
        'swinv2_backbone::add_normed_backward',
        _compute_backward,
        mutates_args=(),
        schema=f'(Tensor grad_out, Tensor branch, Tensor weight, {common}) -> (Tensor, Tensor)',
    )
    # For tracers: shapes and dtypes of the results.
    forward.register_fake(
        lambda x, branch, *_: x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype))
    )
    backward.register_fake(
        lambda grad_out, branch, weight, *_: (
            branch.new_empty(branch.shape),
            weight.new_empty(2, *weight.shape),
        )
    )
    forward.register_autograd(_backward_of_operator, setup_context=_keep_inputs)
    return forward, backward


_add_normed_operator, _add_normed_backward_operator = _operators()
