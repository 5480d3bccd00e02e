"""Scaled cosine attention inside windows: the definition, and the module.

B images, nW windows an image, N tokens a window, C channels, nH heads, d = C / nH.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dispatch import use_fused_implementation
from .fused_attention import attend
from .position_bias import at_least_float32, make_cpb_mlp, position_bias
from .windows import Pair, WindowGrid

LARGEST_LOGIT_SCALE = math.log(100.0)


def normalize(x: Tensor) -> Tensor:
    """Scale the last axis to length 1, in at least float32.

    A zero vector (shorter than 1e-12, as for torch's normalize) becomes zero and gets no gradient.
    It does occur (a key has no bias, so a blank token has a key of exactly 0), and dividing by its
    clamped length instead would send back a gradient of up to 1e12, which is infinite once it is
    cast to float16.
    """
    x = at_least_float32(x)
    squared = x.square().sum(-1, keepdim=True)
    nonzero = squared > 1e-24
    return x * torch.where(nonzero, squared, 1).rsqrt() * nonzero


def logit_factor(logit_scale: Tensor) -> Tensor:
    """What cosine similarities are multiplied with, at most 100: the exponential of a parameter."""
    return at_least_float32(logit_scale).clamp(max=LARGEST_LOGIT_SCALE).exp()


def cosine_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit_scale: Tensor,
    bias: Tensor,
    visible: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax of scaled cosine similarity plus position bias, applied to the values.

    This is the readable definition; :func:`~.fast_attention.attend` is its fast twin.

    Logits and softmax are computed in float32 at least, also under autocast: with a scale of up to
    100 they would lose two digits in half precision.

    Args:
        q: Queries ``(B * nW, nH, N, d)``; k and v likewise.
        k: Keys.
        v: Values; sets the dtype of the result.
        logit_scale: ``(nH, 1, 1)``, natural logarithm of the scale, clamped at ln 100.
        bias: ``(nH, N, N)``, [head, query, key].
        visible: Boolean ``(nW, N, N)``, [window, query, key], or None: everything is.
        dropout: Probability of dropping an attention weight.

    Returns:
        ``(B * nW, nH, N, d)`` in v's dtype.
    """
    with torch.autocast(q.device.type, enabled=False):
        scaled_q = normalize(q) * logit_factor(logit_scale)
        logits = scaled_q @ normalize(k).transpose(-2, -1) + bias
        if visible is not None:
            # -inf and not the customary -100: logits span [-100, 116] here, so a key at -100
            # from the best could still win.
            by_image = logits.unflatten(0, (-1, visible.shape[0]))
            logits = by_image.masked_fill(~visible[:, None], -torch.inf).flatten(0, 1)
        weights = F.dropout(logits.softmax(-1), dropout, training=dropout > 0)
        return weights.to(v.dtype) @ v


class WindowAttention(nn.Module):
    """Multi-head scaled cosine attention of windows, with a continuous position bias.

    Parameters are named as in the official repository. Queries and values have a bias,
    keys have none.

    Args:
        dim: Channels C.
        num_heads: Heads; divides dim.
        attn_drop: Dropout probability of the attention weights.
        proj_drop: Dropout probability of the output.
        windows_at_once: Windows in flight at a time, None: as many as run fastest.

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
        self.attn_drop = attn_drop
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
            grid: How they are cut into windows.
            pretrained_window: Window in tokens at which the CPB network was trained.
        """
        dropout = self.attn_drop if self.training else 0.0
        bias = self.bias(grid.window, pretrained_window)
        if (
            use_fused_implementation() and not dropout
        ):  # The fast path never sees the weights to drop.
            qkv = self._project(x).flatten(0, 2)
            attended = attend(
                qkv, logit_factor(self.logit_scale), bias, grid, self.windows_at_once
            ).view_as(x)
        else:
            q, k, v = self._project(grid.split(x)).permute(2, 0, 3, 1, 4)
            attended = cosine_attention(
                q, k, v, self.logit_scale, bias, grid.attention_mask(x.device), dropout
            )
            attended = grid.merge(attended.transpose(1, 2).flatten(2))
        return self.proj_drop(self.proj(attended))

    def _project(self, x: Tensor) -> Tensor:
        """Queries, keys and values: ``(..., C) -> (..., 3, nH, d)``."""
        no_key_bias = torch.zeros_like(self.q_bias, requires_grad=False)
        qkv = F.linear(x, self.qkv.weight, torch.cat((self.q_bias, no_key_bias, self.v_bias)))
        return qkv.unflatten(-1, (3, self.num_heads, -1))

    def bias(self, window: Pair, pretrained_window: Pair) -> Tensor:
        """Position bias ``(nH, N, N)``, [head, query, key], of a window.

        On a CPU, in eval mode without gradients, it is computed once for given weights, and again
        when they change, by whatever way. (On a GPU, comparing the weights would make the host
        wait for the device in every block, which costs more than the bias.)
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
        # copy.deepcopy (an EMA of the model) and pickle have no use for the cache.
        return {**self.__dict__, '_cached_bias': None}


class _CachedBias:
    """A position bias together with all that it was computed from."""

    def __init__(self, cpb_mlp: nn.Sequential, window: Pair, pretrained_window: Pair):
        self.windows = window, pretrained_window
        self.weights = [p.detach().clone() for p in cpb_mlp.parameters()]
        self.bias = position_bias(cpb_mlp, window, pretrained_window)

    def is_current(self, cpb_mlp: nn.Sequential, window: Pair, pretrained_window: Pair) -> bool:
        # The values themselves are compared: version counters miss writes through
        # `param.data`, which is how mmengine's EMAHook swaps weights.
        return self.windows == (window, pretrained_window) and all(
            old.device == new.device and old.dtype == new.dtype and torch.equal(old, new)
            for old, new in zip(self.weights, cpb_mlp.parameters(), strict=True)
        )
