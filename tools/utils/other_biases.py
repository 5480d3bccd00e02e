"""What a checkpoint's position bias would be if it were no function of log-spaced coordinates.

Both are made from the bias that it has at its pretrained window, which they give back there:
what they differ in is how they go on from there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers.attention import WindowAttention
from swinv2_backbone.layers.position_bias import (
    CPB_HIDDEN,
    LARGEST_BIAS,
    position_bias,
    relative_index,
)
from swinv2_backbone.layers.windows import Pair

# (cpb_mlp, window, pretrained_window) to (nH, N, N).
Bias = Callable[[nn.Sequential, Pair, Pair], Tensor]


def bias_table(cpb_mlp: nn.Sequential, window: Pair, pretrained_window: Pair) -> Tensor:
    """The bias of each offset: ``(nH, 2 Wh - 1, 2 Ww - 1)``."""
    bias = position_bias(cpb_mlp, window, pretrained_window)
    sides = (2 * window[0] - 1, 2 * window[1] - 1)
    table = bias.new_empty(len(bias), sides[0] * sides[1])
    table[:, relative_index(window, bias.device).flatten()] = bias.flatten(1)
    return table.unflatten(1, sides)


def _of_windows(table: Tensor, window: Pair) -> Tensor:
    """A table of offsets to ``(nH, N, N)``."""
    index = relative_index(window, table.device)
    return table.flatten(1)[:, index.flatten()].unflatten(1, index.shape)


def interpolated_table(cpb_mlp: nn.Sequential, window: Pair, pretrained_window: Pair) -> Tensor:
    """The table of the pretrained window, stretched over another by bicubic interpolation.

    That is how the tables of Swin V1, ViT and others are taken to another size.
    """
    table = bias_table(cpb_mlp, pretrained_window, pretrained_window)
    sides = (2 * window[0] - 1, 2 * window[1] - 1)
    return _of_windows(F.interpolate(table[None], sides, mode='bicubic')[0], window)


def linear_bias(cpb_mlp: nn.Sequential, window: Pair, pretrained_window: Pair) -> Tensor:
    """A network like the checkpoint's on coordinates without the logarithm.

    Its first layer is random and wider than there are offsets, the last one solved so that it gives
    the checkpoint's bias at the pretrained window. (The paper trains a model with it instead.)
    """
    table = bias_table(cpb_mlp, pretrained_window, pretrained_window)
    wanted = torch.logit(table.double().cpu().flatten(1).t() / LARGEST_BIAS, eps=1e-6)
    hidden = _hidden_layer(pretrained_window, pretrained_window)
    last = torch.linalg.lstsq(hidden, wanted, driver='gelsd').solution
    solved = LARGEST_BIAS * torch.sigmoid(_hidden_layer(window, pretrained_window) @ last)
    sides = (2 * window[0] - 1, 2 * window[1] - 1)
    return _of_windows(solved.t().unflatten(1, sides).to(table.device, torch.float32), window)


@cache
def _hidden_layer(window: Pair, pretrained_window: Pair) -> Tensor:
    """float64 ``(offsets, channels + 1)``, the last column 1."""
    channels = max(CPB_HIDDEN, 2 * (2 * pretrained_window[0] - 1) * (2 * pretrained_window[1] - 1))
    rows, cols = (
        torch.arange(1 - w, w, dtype=torch.float64) / max(p - 1, 1)
        for w, p in zip(window, pretrained_window, strict=True)
    )
    coords = torch.cartesian_prod(rows, cols).view(-1, 2)
    generator = torch.Generator().manual_seed(0)
    weights, offsets = (
        torch.randn(shape, channels, generator=generator, dtype=torch.float64) for shape in (2, 1)
    )
    hidden = F.relu(coords @ weights + offsets)
    return torch.cat([hidden, torch.ones(len(hidden), 1, dtype=torch.float64)], dim=1)


@contextmanager
def replaced_bias(model: SwinTransformerV2, bias: Bias) -> Iterator[None]:
    """Let the attention of a model use another bias inside a ``with`` block."""
    attentions = [module for module in model.modules() if isinstance(module, WindowAttention)]
    for attention in attentions:
        attention.bias = _Replacement(attention.cpb_mlp, bias)
    try:
        yield
    finally:
        for attention in attentions:
            del attention.bias


class _Replacement:
    """What takes the place of ``WindowAttention.bias``; each window is computed once."""

    def __init__(self, cpb_mlp: nn.Sequential, bias: Bias):
        self._network, self._bias = cpb_mlp, bias
        self._made: dict[tuple[Pair, Pair], Tensor] = {}

    def __call__(self, window: Pair, pretrained_window: Pair) -> Tensor:
        key = window, pretrained_window
        if key not in self._made:
            with torch.no_grad():
                self._made[key] = self._bias(self._network, *key)
        return self._made[key]
