"""The attention module: projections, position bias, and the choice of the implementation.

B images, H W map size in tokens, N tokens per window, C channels, nH heads, d = C / nH channels
per head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .caches import caches_allowed
from .fused_attention import attend, use_fused_attention
from .position_bias import make_cpb_mlp, position_bias
from .precision import at_least_float32
from .reference_attention import attend_reference
from .windows import Pair, WindowGrid

LARGEST_LOGIT_SCALE = math.log(100.0)


def logit_factor(logit_scale: Tensor) -> Tensor:
    """Factor of the cosine similarities, ``exp(logit_scale)``, clamped at 100."""
    return at_least_float32(logit_scale).clamp(max=LARGEST_LOGIT_SCALE).exp()


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
        self.logit_scale = nn.Parameter(torch.empty(num_heads, 1, 1))
        self.cpb_mlp = make_cpb_mlp(num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.empty(dim))
        self.v_bias = nn.Parameter(torch.empty(dim))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self._cached_bias: _CachedBias | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the module's own parameters: scale 10, biases 0."""
        nn.init.constant_(self.logit_scale, math.log(10.0))
        nn.init.zeros_(self.q_bias)
        nn.init.zeros_(self.v_bias)

    def forward(self, x: Tensor, grid: WindowGrid, pretrained_window: Pair) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``.

        Args:
            x: The maps.
            grid: Their partition into windows.
            pretrained_window: Window in tokens at which the CPB network was trained.
        """
        dropout = (self.attn_drop if self.training else None) or 0.0
        bias = self.bias(grid.window, pretrained_window)
        qkv, scale = self._project(x), logit_factor(self.logit_scale)
        if use_fused_attention() and not dropout:  # It has no attention weights to drop.
            tokens = qkv.flatten(0, 2).unflatten(-1, (3, self.num_heads, -1))
            attended = attend(tokens, scale, bias, grid, self.windows_at_once).view_as(x)
        else:
            attended = attend_reference(qkv, scale, bias, grid, dropout)
        return self.proj_drop(self.proj(attended))

    def _project(self, x: Tensor) -> Tensor:
        """Queries, keys and values: ``(..., C) -> (..., 3 * C)``."""
        no_key_bias = torch.zeros_like(self.q_bias, requires_grad=False)
        return F.linear(x, self.qkv.weight, torch.cat((self.q_bias, no_key_bias, self.v_bias)))

    def bias(self, window: Pair, pretrained_window: Pair) -> Tensor:
        """Position bias of a window: ``(nH, N, N)``, [head, query, key].

        On a CPU, in eval mode and without gradients, it is cached until the weights change, in
        whatever way. (On a GPU, comparing the weights would make the host wait for the device in
        every block, which takes longer than computing the bias.)
        """
        if not caches_allowed():
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
