"""Fused attention by torch's scaled_dot_product_attention (SDPA), on any device.

B images, H W map size in tokens, T = B * H * W, nH heads, d channels per head, C = nH * d,
n windows, N tokens per window.

It is faster than the reference attention, and takes less memory: one gather cuts the windows (shift
and padding included) and one scatter puts them back; windows are masked only along the shift
boundary and at the padding; only the logits of a few windows at a time are in memory, and the
backward computes them again.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .precision import at_least_float32, without_autocast
from .windows import WindowGrid, WindowGroup

# Products of half precision with results in float32; torch 2.7 has none.
_HAS_OUT_DTYPE = 'dtype_out' in torch.ops.aten.bmm.overloads()
# As many tokens at a time as stay in the cache of a CPU.
TOKENS_IN_CACHE = 2048
# Logits at a time in a backward: as many as stay in the cache of a CPU, as keep a GPU busy.
_LOGITS_ON_CPU, _LOGITS_ELSEWHERE = 2**21, 2**25


def attend_by_sdpa(
    qkv: Tensor,
    scale: Tensor,
    bias: Tensor,
    size: Sequence[int],
    window: Sequence[int],
    shifted: bool,
    windows_at_once: int | None,
) -> Tensor:
    # (SDPA is slow with a mask that requires a gradient, even while gradients are off.)
    qkv, scale, bias = (x.detach() for x in (qkv, scale, bias))
    out = qkv.new_empty(qkv.shape[0], qkv.shape[2:].numel())
    if qkv.device.type == 'cpu':
        at_once = windows_at_once or max(1, TOKENS_IN_CACHE // bias.shape[1])
    else:
        at_once = windows_at_once or len(qkv)  # All windows.
        bias = bias.to(qkv.dtype)  # Only the kernel for CPUs takes a mask of another dtype.
    with without_autocast(qkv), _pinned_backend(qkv):
        for group in _groups_of(qkv, size, window, shifted):
            mask = _masked_bias(bias, group)[None]
            for tokens in group.tokens.split(at_once):
                windows = _gather(qkv, tokens)
                queries_and_keys = windows[:, :, :2]
                # (Cast once: torch would do so for the lengths and again for the product.)
                scaled = at_least_float32(queries_and_keys)
                factor = _reciprocal_length(scaled)
                factor[:, :, 0] *= scale[:, :, 0]
                queries_and_keys.copy_(scaled.mul_(factor))
                q, k, v = windows.permute(2, 0, 3, 1, 4)
                attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
                _scatter(attended.transpose(1, 2), tokens, group, out)
    return out


def attend_by_sdpa_backward(
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
    groups = _groups_of(qkv, size, window, shifted)
    budget = _LOGITS_ON_CPU if qkv.device.type == 'cpu' else _LOGITS_ELSEWHERE
    at_once = windows_at_once or max(1, budget // bias.numel())
    at_once = min(at_once, max(len(group.tokens) for group in groups))
    # Memory for tensors as large as the logits. Allocated in each round, it would go back to the
    # operating system each time.
    scratch = bias.new_empty(3 if _multiplies_in_half(qkv) else 2, at_once, *bias.shape)
    with without_autocast(qkv):
        for group in groups:
            mask = _masked_bias(bias, group)
            for tokens in group.tokens.split(at_once):
                grad_windows = _gather(grad_out, tokens)
                if group.valid is not None:  # The output of padded queries was dropped.
                    is_valid = grad_windows.new_zeros(tokens.shape[1], 1, 1)
                    grad_windows *= is_valid.index_fill_(0, group.valid, 1)
                windows, logits = _gather(qkv, tokens), scratch[:, : len(tokens)]
                windows = _windows_backward(
                    windows, scale, mask, grad_windows, grads[1], grads[2], logits
                )
                _scatter(windows, tokens, group, grads[0].flatten(1))
    return grads


def _multiplies_in_half(qkv: Tensor) -> bool:
    """Whether the backward multiplies in the inputs' half precision, accumulating in float32.

    On NVIDIA GPUs, whose tensor cores do (and on the meta device, as there). Not on CPUs: there
    products are a fifth of the time, and the additional casts cost more than bfloat16 gains; see
    docs/speed.md.
    """
    if qkv.dtype not in (torch.bfloat16, torch.float16) or not _HAS_OUT_DTYPE:
        return False
    if qkv.device.type != 'cuda':
        return qkv.device.type == 'meta'
    first = 8 if qkv.dtype == torch.bfloat16 else 7
    return torch.version.hip is None and torch.cuda.get_device_capability(qkv.device)[0] >= first


def _pinned_backend(x: Tensor) -> AbstractContextManager:
    """Which kernels SDPA may choose from on a GPU.

    Not cuDNN's, which torch prefers on Hopper: its first call for each shape is slow, and it has
    misread masks (pytorch #191612, #196678). The flash kernels take no mask.
    """
    if x.device.type != 'cuda':
        return nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _groups_of(
    qkv: Tensor, size: Sequence[int], window: Sequence[int], shifted: bool
) -> tuple[WindowGroup, ...]:
    grid = WindowGrid((size[0], size[1]), (window[0], window[1]), shifted)
    return grid.groups(qkv.shape[0] // math.prod(size), qkv.device)


def _masked_bias(bias: Tensor, group: WindowGroup) -> Tensor:
    return bias if group.attn_mask is None else bias.masked_fill(~group.attn_mask, -torch.inf)


def _gather(values: Tensor, tokens: Tensor) -> Tensor:
    """Copy windows out of a map: ``(T, ...)`` and ``(n, N)`` to ``(n, N, ...)``."""
    return values.index_select(0, tokens.flatten()).unflatten(0, tokens.shape)


def _scatter(windows: Tensor, tokens: Tensor, group: WindowGroup, out: Tensor) -> None:
    """Write windows ``(n, N, ...)``, without the padding, to their places in a map ``(T, -1)``."""
    if group.valid is not None:
        windows, tokens = windows[:, group.valid], tokens[:, group.valid]
    out.index_copy_(0, tokens.flatten(), windows.reshape(-1, out.shape[1]))


def _reciprocal_length(x: Tensor) -> Tensor:
    """1 / length along the last axis, in at least float32; 0 for what normalize() makes 0."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return F.threshold(length, 1e-12, torch.inf, inplace=True).reciprocal_()


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Batched product into `out`, accumulated in at least float32, which is the dtype of `out`."""
    if a.dtype == out.dtype:
        torch.bmm(a, b, out=out)
    else:
        torch.bmm(a, b, out_dtype=out.dtype, out=out)


def _windows_backward(
    qkv: Tensor,
    scale: Tensor,
    mask: Tensor,
    grad_out: Tensor,
    grad_scale: Tensor,
    grad_bias: Tensor,
    scratch: Tensor,
) -> Tensor:
    """Gradient of a few windows; softmax, lengths and their derivatives in at least float32.

    With three tensors of scratch the products are of values in the dtype of qkv, each rounded once
    and accumulated in at least float32; with two, of values in at least float32.

    Args:
        qkv: ``(n, N, 3, nH, d)``.
        scale: ``(nH, 1, 1)``.
        mask: ``(nH, N, N)``, the bias, -inf where it is masked.
        grad_out: ``(n, N, nH, d)``.
        grad_scale: ``(nH, 1, 1)``, added to.
        grad_bias: ``(nH, N, N)``, added to.
        scratch: ``(2 or 3, n, nH, N, N)``, overwritten.

    Returns:
        ``(n, N, 3, nH, d)`` in the dtype of qkv.
    """
    dtype = qkv.dtype if len(scratch) == 3 else mask.dtype
    by_part = qkv.permute(2, 0, 3, 1, 4)  # (3, n, nH, N, d)
    factor = _reciprocal_length(by_part[:2])
    units = qkv.new_empty(by_part[:2].shape, dtype=mask.dtype)
    torch.mul(by_part[:2], factor, out=units)
    rounded = units[0] * scale, units[1], by_part[2], grad_out.transpose(1, 2)
    scaled_q, k, v, grad = (part.to(dtype).flatten(0, 1) for part in rounded)

    weights, grad_logits = scratch[:2].flatten(1, 2)
    if len(scratch) == 2:
        torch.bmm(scaled_q, k.transpose(1, 2), out=weights)
        scratch[0] += mask
    else:
        _cosines(by_part[0], by_part[1], factor, out=scratch[2])
        torch.addcmul(mask, scratch[2], scale, out=scratch[0])
    torch.softmax(weights, -1, out=weights)
    grads = torch.empty(3, *units.shape[1:], dtype=units.dtype, device=units.device)
    _product(weights.to(dtype).transpose(1, 2), grad, out=grads[2].flatten(0, 1))
    _product(grad, v.transpose(1, 2), out=grad_logits)
    grad_logits *= weights  # Derivative of the softmax, in place.
    grad_logits.addcmul_(weights, grad_logits.sum(-1, keepdim=True), value=-1)
    grad_bias.view(1, -1).addmm_(scratch.new_ones(1, len(qkv)), scratch[1].flatten(1))
    rounded_grad = grad_logits.to(dtype)
    _product(rounded_grad, k, out=grads[0].flatten(0, 1))
    _product(rounded_grad.transpose(1, 2), scaled_q, out=grads[1].flatten(0, 1))

    along = (grads[:2] * units).sum(-1, keepdim=True)
    if len(scratch) == 2:
        grad_scale += along[0].sum((0, 2))[:, None]
    else:  # Its terms cancel: it takes cosines and gradients that were not rounded.
        by_window = torch.linalg.vecdot(scratch[1].flatten(2), scratch[2].flatten(2))
        grad_scale += by_window.sum(0)[:, None, None]
    factor[0] *= scale
    return _lengths_backward(grads, units, along, factor, torch.empty_like(qkv))


def _cosines(q: Tensor, k: Tensor, factor: Tensor, out: Tensor) -> None:
    """Cosine similarities, by the product of the vectors as they are.

    (Rounding unit vectors would cost two digits of the logits, at a scale of 100.)
    """
    _product(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), out=out.flatten(0, 1))
    out.mul_(factor[0]).mul_(factor[1].transpose(-2, -1))


def _lengths_backward(
    grads: Tensor, units: Tensor, along: Tensor, factor: Tensor, out: Tensor
) -> Tensor:
    """From gradients of unit queries, unit keys and values to those of qkv, in its layout.

    The derivative of the normalization: drop the part along the unit vector, divide by the length.
    """
    by_part = out.permute(2, 0, 3, 1, 4)
    grads[:2].addcmul_(units, along, value=-1)
    torch.mul(grads[:2], factor, out=by_part[:2])
    by_part[2] = grads[2]
    return out
