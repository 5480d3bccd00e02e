"""Position biases other than the log-spaced one, made from the bias of a checkpoint.

Each is a function of ``(cpb_mlp, window, pretrained_window)`` that returns ``(nH, N, N)`` with
N = Wh * Ww tokens. All of them return the bias of the checkpoint at its pretrained window; they
differ at other windows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers.attention import AttentionConstants
from swinv2_backbone.layers.position_bias import (
    CPB_HIDDEN,
    LARGEST_BIAS,
    expand_table,
    position_bias_tables,
)
from swinv2_backbone.layers.stages import SwinTransformerStage
from swinv2_backbone.layers.windows import Pair

Bias = Callable[[nn.Sequential, Pair, Pair], Tensor]


def bias_table(cpb_mlp: nn.Sequential, window: Pair, pretrained_window: Pair) -> Tensor:
    """The bias of the checkpoint for each offset: ``(nH, 2 Wh - 1, 2 Ww - 1)``."""
    [table] = position_bias_tables([cpb_mlp], window, pretrained_window)
    return table.unflatten(1, (2 * window[0] - 1, 2 * window[1] - 1))


def interpolated_table(cpb_mlp: nn.Sequential, window: Pair, pretrained_window: Pair) -> Tensor:
    """The table of the pretrained window, resized to another by bicubic interpolation.

    This is the usual way to resize the bias tables of Swin V1 and others.
    """
    table = bias_table(cpb_mlp, pretrained_window, pretrained_window)
    sides = (2 * window[0] - 1, 2 * window[1] - 1)
    return expand_table(F.interpolate(table[None], sides, mode='bicubic')[0].flatten(1), window)


def linear_bias(cpb_mlp: nn.Sequential, window: Pair, pretrained_window: Pair) -> Tensor:
    """The bias of a network on linear instead of log-spaced coordinates.

    Its first layer is random, with more channels than there are offsets; the last one is solved by
    least squares to give the checkpoint's bias at the pretrained window. (The paper trains it.)
    """
    table = bias_table(cpb_mlp, pretrained_window, pretrained_window)
    logits = torch.logit(table.double().cpu().flatten(1).t() / LARGEST_BIAS, eps=1e-6)
    hidden = _hidden_layer(pretrained_window, pretrained_window)
    last = torch.linalg.lstsq(hidden, logits, driver='gelsd').solution
    solved = LARGEST_BIAS * torch.sigmoid(_hidden_layer(window, pretrained_window) @ last)
    return expand_table(solved.t().to(table.device, torch.float32), window)


@cache
def _hidden_layer(window: Pair, pretrained_window: Pair) -> Tensor:
    """Random features of linear coordinates: float64 ``(offsets, channels + 1)``, the last 1."""
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
    """Make all attention layers of a model use another bias inside a ``with`` block."""
    stages = [module for module in model.modules() if isinstance(module, SwinTransformerStage)]
    for stage in stages:
        # The bias of each window is computed once.
        stage.attention_constants = cache(torch.no_grad()(partial(_replace_bias, stage, bias)))
    try:
        yield
    finally:
        for stage in stages:
            del stage.attention_constants


def _replace_bias(
    stage: SwinTransformerStage, bias: Bias, window: Pair, as_table: bool = False
) -> list[AttentionConstants]:
    # These biases are no tables. For what is not, SDPA computes the attention, also on a GPU.
    original = SwinTransformerStage.attention_constants(stage, window)
    return [
        constants._replace(bias=bias(block.attn.cpb_mlp, window, stage.pretrained_window))
        for constants, block in zip(original, stage.blocks, strict=True)
    ]
