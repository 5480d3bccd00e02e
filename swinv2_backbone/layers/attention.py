"""The attention module: projections, position bias, and the choice of the implementation.

B images, H W map size in tokens, N tokens per window, C channels, nH heads, d = C / nH channels
per head.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .caches import caches_allowed, capturing, current_stream, exporting, keep_for_graph
from .exported_attention import attend_exported
from .fused_attention import attend, use_fused_attention
from .linear import linear
from .position_bias import expand_table, make_cpb_mlp, position_bias_tables
from .precision import at_least_float32, without_autocast
from .reference_attention import attend_reference
from .windows import Pair, WindowGrid

LARGEST_LOGIT_SCALE = math.log(100.0)


def logit_factor(logit_scale: Tensor) -> Tensor:
    """Factor of the cosine similarities, ``exp(logit_scale)``, clamped at 100."""
    return at_least_float32(logit_scale).clamp(max=LARGEST_LOGIT_SCALE).exp()


class AttentionConstants(NamedTuple):
    """What an attention computes from its parameters and the window alone, whatever the image.

    Attributes:
        qkv_bias: ``(3 * C,)``.
        scale: ``(nH, 1, 1)``, factor of the cosine similarities, in at least float32.
        bias: ``(nH, N, N)``, the position bias, [head, query, key], in at least float32. For the
            Triton kernels, its table instead, ``(nH, (2 Wh - 1) * (2 Ww - 1))``.
    """

    qkv_bias: Tensor
    scale: Tensor
    bias: Tensor


def attention_constants(
    attentions: 'Sequence[WindowAttention]',
    window: Pair,
    pretrained_window: Pair,
    as_table: bool = False,
) -> list[AttentionConstants]:
    """The constants of several attentions of one shape, computed together.

    Args:
        window: Current window in tokens.
        pretrained_window: Window in tokens at which the CPB networks were trained.
        as_table: Whether the bias is a table, as the Triton kernels take it.
    """
    no_key_bias = torch.zeros_like(attentions[0].q_bias, requires_grad=False)
    with without_autocast(no_key_bias):  # It has no rule for cat and stack of float64.
        qkv_bias = torch.cat([b for a in attentions for b in (a.q_bias, no_key_bias, a.v_bias)])
        scales = logit_factor(torch.stack([a.logit_scale for a in attentions]))
    tables = position_bias_tables([a.cpb_mlp for a in attentions], window, pretrained_window)
    # (Not by index: unbind's gradient is one stack, that of an index a tensor of zeros each.)
    bias = tables if as_table else expand_table(tables, window)
    parts = qkv_bias.view(len(attentions), -1), scales, bias
    return [AttentionConstants(*each) for each in zip(*(x.unbind() for x in parts), strict=True)]


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
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the module's own parameters: scale 10, biases 0."""
        nn.init.constant_(self.logit_scale, math.log(10.0))
        nn.init.zeros_(self.q_bias)
        nn.init.zeros_(self.v_bias)

    @property
    def dropout(self) -> float:
        """Probability of dropping an attention weight, now."""
        return (self.attn_drop if self.training else None) or 0.0

    def forward(self, x: Tensor, grid: WindowGrid, constants: AttentionConstants) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``.

        Args:
            x: The maps.
            grid: Their partition into windows.
            constants: Of this module and the grid's window.
        """
        dropout = self.dropout
        qkv_bias, scale, bias = constants
        if exporting() and not self.training:
            attended = attend_exported(x, self.qkv.weight, qkv_bias, scale, bias, grid)
            return self.proj_drop(linear(self.proj, attended))
        qkv = linear(self.qkv, x, qkv_bias)
        # (A table is for the Triton kernels, wherever the stage has chosen them.)
        if bias.ndim == 2 or (use_fused_attention() and not dropout):
            tokens = qkv.flatten(0, 2).unflatten(-1, (3, self.num_heads, -1))
            attended = attend(tokens, scale, bias, grid, self.windows_at_once).view_as(x)
        else:
            attended = attend_reference(qkv, scale, bias, grid, dropout)
        return self.proj_drop(linear(self.proj, attended))


class ConstantsCache:
    """The constants of the attentions of a stage, cached in eval mode without gradients.

    On a CPU, the cached constants are those of the present weights, however these were changed:
    their values are compared. On other devices that would make the host wait for the device, so
    that the cache goes by the tensors and their versions. It is emptied by every call with
    gradients, as an optimizer is likely to follow: fused ones leave versions as they are, and so
    do writes through ``param.data``. After such writes without a call in between, use
    :meth:`clear`, or ``train()`` or ``eval()`` of the model, which do.

    A captured CUDA graph reads the constants of its capture, also when weights have changed.
    """

    def __init__(self) -> None:
        # By stream, see caches.cache_tensors. Replaced as a whole: threads share it.
        self._cached: dict[int, _Cached] = {}

    def get(
        self,
        attentions: Sequence[WindowAttention],
        window: Pair,
        pretrained_window: Pair,
        as_table: bool = False,
    ) -> list[AttentionConstants]:
        """As :func:`attention_constants`."""
        key = window, pretrained_window, as_table
        args = attentions, *key
        if torch.is_grad_enabled():
            self.clear()
        weights = [
            p
            for a in attentions
            for p in (a.q_bias, a.v_bias, a.logit_scale, *a.cpb_mlp.parameters())
        ]
        usable = caches_allowed() and not any(p.is_inference() for p in weights)
        if torch.is_grad_enabled() or any(a.training for a in attentions) or not usable:
            return attention_constants(*args)
        stream = current_stream(weights[0].device)
        entries = self._cached
        # (All streams have been waited for when a capture begins.)
        candidates = entries.values() if capturing() else filter(None, [entries.get(stream)])
        cached = next((c for c in candidates if c.is_current(weights, key)), None)
        if cached is None:
            with torch.inference_mode(False), torch.no_grad():
                cached = _Cached(weights, key, attention_constants(*args))
            if not capturing():  # Else it is in the memory of the graph.
                current = {s: c for s, c in entries.items() if c.versions == cached.versions}
                self._cached = {**current, stream: cached}
        keep_for_graph(cached)
        return cached.constants

    def clear(self) -> None:
        """Forget the cached constants."""
        self._cached = {}

    def __reduce__(self) -> tuple:
        # copy.deepcopy (as for an EMA of the model) and pickle leave the constants out.
        return ConstantsCache, ()


class _Cached:
    """Constants, and the windows, their form and the weights that they were computed from."""

    def __init__(
        self, weights: list[nn.Parameter], key: tuple, constants: list[AttentionConstants]
    ):
        self.key = key
        self.constants = constants
        self.parameters = weights
        # An alias keeps the memory from being given to another tensor.
        self.weights = [p.detach().clone() if _cheap_to_compare(p) else p.detach() for p in weights]
        self.versions = [p._version for p in weights]

    def is_current(self, weights: list[nn.Parameter], key: tuple) -> bool:
        olds = zip(weights, self.parameters, self.weights, self.versions, strict=True)
        return self.key == key and all(_is_same(*old) for old in olds)


def _cheap_to_compare(parameter: Tensor) -> bool:
    return parameter.device.type == 'cpu'


def _is_same(new: Tensor, parameter: Tensor, weights: Tensor, version: int) -> bool:
    """Whether a parameter has the values that it had."""
    if new.device != weights.device or new.dtype != weights.dtype:
        return False
    if _cheap_to_compare(new):
        # Version counters miss writes through `param.data`, by which mmengine's EMAHook swaps
        # weights.
        return torch.equal(new, weights)
    same_memory = new.data_ptr() == weights.data_ptr()
    return new is parameter and same_memory and new._version == version
