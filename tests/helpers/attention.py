"""Window attention in float64, how far float32 may be from it, and as timm computes it."""

import torch
import torch.nn.functional as F

from swinv2_backbone.layers.position_bias import expand_table
from swinv2_backbone.layers.reference_attention import attend_reference, normalize


def _maps(tokens, grid):
    """``(T, ...)`` to ``(B, H, W, -1)``."""
    return tokens.flatten(1).unflatten(0, (-1, *grid.size))


def _expand(bias, grid):
    return expand_table(bias, grid.window) if bias.ndim == 2 else bias


def attend_exactly(qkv, scale, bias, grid, grad_out):
    """Output and gradients of the reference in float64; the bias is ``(nH, N, N)`` or a table."""
    inputs = [x.double().requires_grad_() for x in (qkv, scale, bias)]
    out = attend_reference(_maps(inputs[0], grid), inputs[1], _expand(inputs[2], grid), grid)
    out = out.flatten(0, 2)
    return out, *torch.autograd.grad(out, inputs, grad_out.double().view_as(out))


def error_in_float32(qkv, scale, bias, grid, grad_out):
    """How far the gradients of scale and bias may be from float64 if nothing is below float32.

    Each is a sum of ``P (dP - delta)`` over tokens, for the scale times a cosine. Its terms cancel:
    in the gradient of a scale, a single number for all tokens, sometimes a thousandfold, so that
    the error is no fixed part of the sum. Derivation: a logit is off by u times itself, which P
    multiplies by up to 2 (by itself and by the sum of its row); dP and delta, sums of products, by
    u times the sum of their magnitudes. Errors of terms are independent, so that those of sums add
    as squares. Factor 4: so many roundings of each, or standard deviations.

    Returns:
        Bounds in the Euclidean norm.
    """
    qkv, scale, bias = qkv.double(), scale.double(), _expand(bias.double(), grid)
    windows = grid.split(_maps(qkv, grid)).unflatten(-1, qkv.shape[1:])
    q, k, v = windows.permute(2, 0, 3, 1, 4)
    grad = grid.split(_maps(grad_out.double(), grid)).unflatten(-1, (len(scale), -1))
    grad = grad.transpose(1, 2)
    cosines, mask = normalize(q) @ normalize(k).mT, grid.attention_mask(qkv.device)
    logits = masked = cosines * scale + bias
    if mask is not None:
        by_image = logits.unflatten(0, (-1, len(mask)))
        masked = by_image.masked_fill(~mask[:, None], -torch.inf).flatten(0, 1)
    weights = masked.softmax(-1)

    def without_mean(x):
        return x - (weights * x).sum(-1, keepdim=True)

    magnitudes = grad.abs() @ v.abs().mT
    magnitudes += (weights * magnitudes).sum(-1, keepdim=True)
    errors = weights * (2 * logits.abs() * without_mean(grad @ v.mT).abs() + magnitudes)
    errors *= 4 * torch.finfo(torch.float32).eps / 2
    # The Triton kernels multiply with a logit, but for that of its row, and subtract what comes of
    # the bias. In both, the errors of a row do not add up to 0 as its gradients do.
    factors = (logits - masked.logsumexp(-1, keepdim=True)).abs() + bias.abs()
    of_scale = torch.hypot((errors * cosines).norm(), (errors * factors / scale).norm())
    return of_scale, errors.norm()


def attend_as_timm(qkv, scale, table, grid):
    """Attention as timm (1.0) writes it, under autocast; tests/parity compares it with timm's."""
    windows = grid.split(_maps(qkv, grid)).unflatten(-1, qkv.shape[1:])
    q, k, v = windows.permute(2, 0, 3, 1, 4)
    with torch.autocast('cpu', torch.bfloat16):
        cosines = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        weights = (cosines * scale + expand_table(table, grid.window)).softmax(-1)
        attended = weights @ v
    return grid.merge(attended.transpose(1, 2).flatten(2)).flatten(0, 2)
