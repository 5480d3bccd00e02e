"""The fast twin of cosine attention, from maps to maps.

B images, H W map size in tokens, T = B * H * W, nH heads, d channels of a head, C = nH * d,
N tokens a window.

What it saves: windows are cut (with shift and padding) by one gather and put back by one scatter;
only windows at the seam or the padding have a mask, one a kind; the logits of a few windows at a
time are in memory, in the backward too, which computes them again.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import FUSED_SUPPORTED, TOKENS_IN_CACHE, records_gradient
from .windows import WindowGrid, WindowGroup

# Logits in flight in a backward by default: what a CPU's cache holds, what fills a GPU.
_LOGITS_ON_CPU, _LOGITS_ELSEWHERE = 2**21, 2**25


def attend(
    qkv: Tensor, scale: Tensor, bias: Tensor, grid: WindowGrid, windows_at_once: int | None = None
) -> Tensor:
    """Windowed cosine attention of every token of a batch of maps.

    Equal to cutting the maps into windows, :func:`~.attention.cosine_attention`, and putting them
    together again. The products of q and k take the inputs' dtype, unit vectors rounded to it
    (they carry the rounding of q and k anyway), and accumulate in float32.

    To torch.compile it is one operator.

    Args:
        qkv: Queries, keys and values of the tokens, ``(T, 3, nH, d)``.
        scale: ``(nH, 1, 1)``, factor of the cosine similarities.
        bias: ``(nH, N, N)``, [head, query, key].
        grid: How each map is cut into windows.
        windows_at_once: Windows in flight at a time, in forward and backward. None: as many as
            run fastest.

    Returns:
        ``(T, C)`` in the dtype of qkv. It has first derivatives only.
    """
    function = _attend
    if torch.compiler.is_compiling() or records_gradient(qkv, scale, bias):
        function = _attend_operator
    return function(qkv, scale, bias, grid.size, grid.window, grid.shifted, windows_at_once)


def _attend(
    qkv: Tensor,
    scale: Tensor,
    bias: Tensor,
    size: Sequence[int],
    window: Sequence[int],
    shifted: bool,
    windows_at_once: int | None,
) -> Tensor:
    # (A mask that wants a gradient sends SDPA down its slow path, with gradients off, too.)
    qkv, scale, bias = (x.detach() for x in (qkv, scale, bias))
    out = qkv.new_empty(qkv.shape[0], qkv.shape[2:].numel())
    if qkv.device.type == 'cpu':
        at_once = windows_at_once or max(1, TOKENS_IN_CACHE // bias.shape[1])
    else:
        at_once = windows_at_once or len(qkv)  # All of them.
        bias = bias.to(qkv.dtype)  # Only the CPU's kernel takes a mask of another dtype.
    with torch.autocast(qkv.device.type, enabled=False):
        for kind in _kinds(qkv, size, window, shifted):
            mask = _masked(bias, kind)[None]
            for tokens in kind.tokens.split(at_once):
                windows = _gather(qkv, tokens)
                queries_and_keys = windows[:, :, :2]
                factor = _reciprocal_length(queries_and_keys)
                factor[:, :, 0] *= scale[:, :, 0]
                queries_and_keys *= factor
                q, k, v = windows.permute(2, 0, 3, 1, 4)
                attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
                _scatter(attended.transpose(1, 2), tokens, kind, out)
    return out


def _attend_backward(
    grad_out: Tensor,
    qkv: Tensor,
    scale: Tensor,
    bias: Tensor,
    size: Sequence[int],
    window: Sequence[int],
    shifted: bool,
    windows_at_once: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.empty_like(qkv), torch.zeros_like(scale), torch.zeros_like(bias)
    grad_out = grad_out.unflatten(1, qkv.shape[2:])
    kinds = _kinds(qkv, size, window, shifted)
    budget = _LOGITS_ON_CPU if qkv.device.type == 'cpu' else _LOGITS_ELSEWHERE
    at_once = windows_at_once or max(1, budget // bias.numel())
    at_once = min(at_once, max(len(kind.tokens) for kind in kinds))
    # Memory for what is as large as the logits: asked for again and again, it would be given back
    # to the system each time.
    scratch = bias.new_empty(2, at_once, *bias.shape)
    with torch.autocast(qkv.device.type, enabled=False):
        for kind in kinds:
            mask = _masked(bias, kind)
            for tokens in kind.tokens.split(at_once):
                grad_windows = _gather(grad_out, tokens)
                if kind.real is not None:  # What padded queries computed was dropped.
                    kept = grad_windows.new_zeros(tokens.shape[1], 1, 1)
                    grad_windows *= kept.index_fill_(0, kind.real, 1)
                windows = _windows_backward(
                    _gather(qkv, tokens),
                    scale,
                    mask,
                    grad_windows,
                    *grads[1:],
                    scratch[:, : len(tokens)],
                )
                _scatter(windows, tokens, kind, grads[0].flatten(1))
    return grads


def _keep_inputs(ctx, inputs, output):
    # And nothing of size windows x heads x N x N: the backward computes the logits again.
    ctx.save_for_backward(*inputs[:3])
    ctx.windows = inputs[3:]


def _backward_of_operator(ctx, grad_out):
    grads = _attend_backward_operator(grad_out.contiguous(), *ctx.saved_tensors, *ctx.windows)
    return *grads, None, None, None, None


def _operators() -> tuple[Callable, Callable]:
    """The two functions as operators of torch's, the first one differentiable by the second.

    To torch.compile they are opaque: their loops over windows stay out of the graph, and so does
    all arithmetic on the size of the map.
    """
    windows = 'SymInt[] size, SymInt[] window, bool shifted, int? windows_at_once'
    forward = torch.library.custom_op(
        'swinv2_backbone::attend',
        _attend,
        mutates_args=(),
        schema=f'(Tensor qkv, Tensor scale, Tensor bias, {windows}) -> Tensor',
    )
    backward = torch.library.custom_op(
        'swinv2_backbone::attend_backward',
        _attend_backward,
        mutates_args=(),
        schema=f'(Tensor grad_out, Tensor qkv, Tensor scale, Tensor bias, {windows}) '
        '-> (Tensor, Tensor, Tensor)',
    )
    # What a tracer is to know of the results: shapes and dtypes.
    forward.register_fake(lambda qkv, *_: qkv.new_empty(qkv.shape[0], qkv.shape[2] * qkv.shape[3]))
    backward.register_fake(lambda grad_out, *inputs: tuple(map(torch.empty_like, inputs[:3])))
    forward.register_autograd(_backward_of_operator, setup_context=_keep_inputs)
    return forward, backward


if FUSED_SUPPORTED:
    _attend_operator, _attend_backward_operator = _operators()


def _kinds(
    qkv: Tensor, size: Sequence[int], window: Sequence[int], shifted: bool
) -> tuple[WindowGroup, ...]:
    grid = WindowGrid(tuple(size), tuple(window), shifted)
    return grid.kinds(qkv.shape[0] // math.prod(size), qkv.device)


def _masked(bias: Tensor, kind: WindowGroup) -> Tensor:
    return bias if kind.visible is None else bias.masked_fill(~kind.visible, -torch.inf)


def _gather(values: Tensor, tokens: Tensor) -> Tensor:
    """Windows of a map, a copy: ``(T, ...)`` and ``(n, N)`` to ``(n, N, ...)``."""
    return values.index_select(0, tokens.flatten()).unflatten(0, tokens.shape)


def _scatter(windows: Tensor, tokens: Tensor, kind: WindowGroup, out: Tensor) -> None:
    """Write windows ``(n, N, ...)`` to their places in a map ``(T, -1)``, without the padding."""
    if kind.real is not None:
        windows, tokens = windows[:, kind.real], tokens[:, kind.real]
    out.index_copy_(0, tokens.flatten(), windows.reshape(-1, out.shape[1]))


def _reciprocal_length(x: Tensor) -> Tensor:
    """1 / length of the last axis, in float32 at least; 0 for a zero vector: normalize()."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return F.threshold_(length, 1e-12, torch.inf).reciprocal_()


def _windows_backward(
    qkv: Tensor,
    scale: Tensor,
    mask: Tensor,
    grad_out: Tensor,
    grad_scale: Tensor,
    grad_bias: Tensor,
    scratch: Tensor,
) -> Tensor:
    """Gradient of a few windows, in float32 at least.

    Args:
        qkv: ``(n, N, 3, nH, d)``.
        scale: ``(nH, 1, 1)``.
        mask: ``(nH, N, N)``, the bias, -inf where a key is hidden.
        grad_out: ``(n, N, nH, d)``.
        grad_scale: ``(nH, 1, 1)``, added to.
        grad_bias: ``(nH, N, N)``, added to.
        scratch: ``(2, n, nH, N, N)``, overwritten.

    Returns:
        ``(n, N, 3, nH, d)`` in the dtype of qkv.
    """
    count, size, _, heads, width = qkv.shape
    dtype = mask.dtype
    # [query, key, value, gradient], each (n, nH, N, d) and contiguous for the products.
    parts = qkv.new_empty(4, count, heads, size, width, dtype=dtype)
    by_part = qkv.permute(2, 0, 3, 1, 4)
    factor = _reciprocal_length(by_part[:2])
    torch.mul(by_part[:2], factor, out=parts[:2])
    parts[2] = by_part[2]
    parts[3] = grad_out.transpose(1, 2)
    k, v, grad = (part.flatten(0, 1) for part in parts[1:])
    scaled_q = (parts[0] * scale).flatten(0, 1)

    weights, grad_logits = scratch.flatten(1, 2)
    torch.bmm(scaled_q, k.transpose(1, 2), out=weights)
    scratch[0] += mask
    torch.softmax(weights, -1, out=weights)
    grads = torch.empty_like(parts[:3])
    torch.bmm(weights.transpose(1, 2), grad, out=grads[2].flatten(0, 1))
    torch.bmm(grad, v.transpose(1, 2), out=grad_logits)
    torch.ops.aten._softmax_backward_data(grad_logits, weights, -1, dtype, grad_input=grad_logits)
    grad_bias.view(1, -1).addmm_(scratch.new_ones(1, count), scratch[1].flatten(1))
    torch.bmm(grad_logits, k, out=grads[0].flatten(0, 1))
    torch.bmm(grad_logits.transpose(1, 2), scaled_q, out=grads[1].flatten(0, 1))

    # Through the normalization: the part along the unit vector goes, the rest is over its length.
    along = (grads[:2] * parts[:2]).sum(-1, keepdim=True)
    grad_scale += along[0].sum((0, 2))[:, None]
    grads[:2].addcmul_(parts[:2], along, value=-1)
    factor[0] *= scale
    grad_qkv = torch.empty_like(qkv)
    by_part = grad_qkv.permute(2, 0, 3, 1, 4)
    torch.mul(grads[:2], factor, out=by_part[:2])
    by_part[2] = grads[2]
    return grad_qkv
