"""Scaled cosine attention within windows: the reference attention, and the module.

B images, H W map size in tokens, nW windows per image, N tokens per window, C channels, nH heads,
d = C / nH channels per head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused_attention import attend, use_fused_attention
from .position_bias import at_least_float32, make_cpb_mlp, position_bias
from .windows import Pair, WindowGrid

LARGEST_LOGIT_SCALE = math.log(100.0)


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


def logit_factor(logit_scale: Tensor) -> Tensor:
    """Factor of the cosine similarities, ``exp(logit_scale)``, clamped at 100."""
    return at_least_float32(logit_scale).clamp(max=LARGEST_LOGIT_SCALE).exp()


def cosine_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit_scale: Tensor,
    bias: Tensor,
    attn_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax of scaled cosine similarity plus position bias, applied to the values.

    This is the reference attention, written to be read; :func:`~.fused_attention.attend` is the
    fused attention, which is faster.

    Logits and softmax are computed in at least float32, also under autocast: at a scale of up to
    100, half precision would lose two digits.

    Args:
        q, k, v: Queries, keys and values ``(B * nW, nH, N, d)``; v sets the result's dtype.
        logit_scale: ``(nH, 1, 1)``, natural logarithm of the scale, clamped at ln 100.
        bias: ``(nH, N, N)``, [head, query, key].
        attn_mask: Boolean ``(nW, N, N)``, [window, query, key], True where the key is attended
            to. None: everywhere.
        dropout: Probability of dropping an attention weight.

    Returns:
        ``(B * nW, nH, N, d)``.
    """
    with torch.autocast(q.device.type, enabled=False):
        scaled_q = normalize(q) * logit_factor(logit_scale)
        logits = scaled_q @ normalize(k).transpose(-2, -1) + bias
        if attn_mask is not None:
            # -inf, not the customary -100: logits are in [-100, 116], so that a masked key
            # could still have the largest one.
            by_image = logits.unflatten(0, (-1, attn_mask.shape[0]))
            logits = by_image.masked_fill(~attn_mask[:, None], -torch.inf).flatten(0, 1)
        weights = F.dropout(logits.softmax(-1), dropout, training=dropout > 0)
        return weights.to(v.dtype) @ v


class WindowAttention(nn.Module):
    """Multi-head scaled cosine attention within windows, with a continuous position bias.

    Parameters are named as in the official repository. Queries and values have a bias, keys have
    none.

    Args:
        dim: Channels C, a multiple of `num_heads`.
        attn_drop: Dropout probability of the attention weights.
        proj_drop: Dropout probability of the output.
        windows_at_once: Windows computed at a time; see :func:`~.fused_attention.attend`.

    Source:
        SwinV2 paper (arXiv 2111.09883), sections 3.2 and 3.3.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        windows_at_once: int | None = None,
    ):
        super().__init__()
        self.num_heads = num_heads
        # None for 0: torch.compile treats a float as a variable, and older versions cannot branch
        # on it.
        self.attn_drop = attn_drop or None
        self.windows_at_once = windows_at_once
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = make_cpb_mlp(num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self._cached_bias: _CachedBias | None = None

    def forward(self, x: Tensor, grid: WindowGrid, pretrained_window: Pair) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``.

        Args:
            x: The maps.
            grid: Their partition into windows.
            pretrained_window: Window in tokens at which the CPB network was trained.
        """
        dropout = (self.attn_drop if self.training else None) or 0.0
        bias = self.bias(grid.window, pretrained_window)
        if use_fused_attention() and not dropout:  # It has no attention weights to drop.
            qkv, factor = self._project(x).flatten(0, 2), logit_factor(self.logit_scale)
            attended = attend(qkv, factor, bias, grid, self.windows_at_once).view_as(x)
        else:
            q, k, v = self._project(grid.split(x)).permute(2, 0, 3, 1, 4)
            attn_mask = grid.attention_mask(x.device)
            attended = cosine_attention(q, k, v, self.logit_scale, bias, attn_mask, dropout)
            attended = grid.merge(attended.transpose(1, 2).flatten(2))
        return self.proj_drop(self.proj(attended))

    def _project(self, x: Tensor) -> Tensor:
        """Queries, keys and values: ``(..., C) -> (..., 3, nH, d)``."""
        no_key_bias = torch.zeros_like(self.q_bias, requires_grad=False)
        qkv = F.linear(x, self.qkv.weight, torch.cat((self.q_bias, no_key_bias, self.v_bias)))
        return qkv.unflatten(-1, (3, self.num_heads, -1))

    def bias(self, window: Pair, pretrained_window: Pair) -> Tensor:
        """Position bias of a window: ``(nH, N, N)``, [head, query, key].

        On a CPU, in eval mode and without gradients, it is cached until the weights change, in
        whatever way. (On a GPU, comparing the weights would make the host wait for the device in
        every block, which takes longer than computing the bias.)
        """
        if torch.compiler.is_compiling():
            return position_bias(self.cpb_mlp, window, pretrained_window)
        if self.training or torch.is_grad_enabled() or self.logit_scale.device.type != 'cpu':
            self._cached_bias = None
            return position_bias(self.cpb_mlp, window, pretrained_window)
        cached = self._cached_bias
        if cached is None or not cached.is_current(self.cpb_mlp, window, pretrained_window):
            cached = self._cached_bias = _CachedBias(self.cpb_mlp, window, pretrained_window)
        return cached.bias

    def __getstate__(self) -> dict:
        # copy.deepcopy (as for an EMA of the model) and pickle leave the cache out.
        return {**self.__dict__, '_cached_bias': None}


class _CachedBias:
    """A position bias, and the windows and weights that it was computed from."""

    def __init__(self, cpb_mlp: nn.Sequential, window: Pair, pretrained_window: Pair):
        self.windows = window, pretrained_window
        self.weights = [p.detach().clone() for p in cpb_mlp.parameters()]
        self.bias = position_bias(cpb_mlp, window, pretrained_window)

    def is_current(self, cpb_mlp: nn.Sequential, window: Pair, pretrained_window: Pair) -> bool:
        # The values are compared, because version counters miss writes through `param.data`, by
        # which mmengine's EMAHook swaps weights.
        return self.windows == (window, pretrained_window) and all(
            old.device == new.device and old.dtype == new.dtype and torch.equal(old, new)
            for old, new in zip(self.weights, cpb_mlp.parameters(), strict=True)
        )
