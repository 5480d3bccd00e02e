"""Reference attention: scaled cosine attention within windows, written to be read.

B images, H W map size in tokens, nW windows per image, N tokens per window, nH heads, d channels
per head, C = nH * d.

The fused implementations are faster, and are tested to compute the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32, without_autocast
from .windows import WindowGrid


def normalize(x: Tensor) -> Tensor:
    """Scale the vectors along the last axis to length 1, in at least float32.

    A zero vector (shorter than 1e-12, as in torch's normalize) becomes zero and gets no gradient.
    Zero vectors occur: keys have no bias, so the key of a blank token is exactly 0. Dividing by a
    clamped length instead would give a gradient of up to 1e12, infinite when cast to float16.
    """
    x = at_least_float32(x)
    squared = x.square().sum(-1, keepdim=True)
    nonzero = squared > 1e-24
    return x * torch.where(nonzero, squared, 1).rsqrt() * nonzero


def cosine_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    bias: Tensor,
    attn_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax of scaled cosine similarity plus position bias, applied to the values.

    Logits and softmax are computed in at least float32, also under autocast: at a scale of up to
    100, half precision would lose two digits.

    Args:
        q: Queries ``(B * nW, nH, N, d)``.
        k: Keys, likewise.
        v: Values, likewise; they set the result's dtype.
        scale: ``(nH, 1, 1)``, factor of the cosine similarities.
        bias: ``(nH, N, N)``, [head, query, key].
        attn_mask: Boolean ``(nW, N, N)``, [window, query, key], True where the key is attended
            to. None: everywhere.
        dropout: Probability of dropping an attention weight.

    Returns:
        ``(B * nW, nH, N, d)``.
    """
    with without_autocast(q):
        logits = (normalize(q) * scale) @ normalize(k).transpose(-2, -1) + bias
        if attn_mask is not None:
            # -inf, not the customary -100: logits are in [-100, 116], so that a masked key
            # could still have the largest one.
            by_image = logits.unflatten(0, (-1, attn_mask.shape[0]))
            logits = by_image.masked_fill(~attn_mask[:, None], -torch.inf).flatten(0, 1)
        weights = F.dropout(logits.softmax(-1), dropout, training=dropout > 0)
        return weights.to(v.dtype) @ v


def attend_reference(
    qkv: Tensor, scale: Tensor, bias: Tensor, grid: WindowGrid, dropout: float = 0.0
) -> Tensor:
    """Cut maps into windows, attend within them, and merge them.

    Args:
        qkv: Queries, keys and values ``(B, H, W, 3 * C)``, [part, head, channel] along the last
            axis.
        scale: As of :func:`cosine_attention`.
        bias: Likewise.
        dropout: Likewise.
        grid: Partition of each map into windows.

    Returns:
        ``(B, H, W, C)``.
    """
    windows = grid.split(qkv).unflatten(-1, (3, scale.shape[0], -1))
    q, k, v = windows.permute(2, 0, 3, 1, 4)
    attn_mask = grid.attention_mask(qkv.device)
    attended = cosine_attention(q, k, v, scale, bias, attn_mask, dropout)
    return grid.merge(attended.transpose(1, 2).flatten(2))
