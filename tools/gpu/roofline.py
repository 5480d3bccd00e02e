"""How fast a GPU can be at best: the times of SwinV2-T's attention by a roofline model.

A kernel takes at least as long as the slowest of three: its products on the tensor cores, its bytes
through memory, and the issue of its instructions. It is a bound, and no measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tools.benchmarking.cases import ARCHITECTURES, Case

WARP = 32


@dataclass(frozen=True)
class Gpu:
    """Rates of one GPU.

    Attributes:
        flops: Products in bf16 per second that a large matrix product reaches.
        bandwidth: Bytes per second that a large copy reaches, read and written.
        issue: Warp instructions per second: multiprocessors x 4 schedulers x clock.
        source: Where these numbers come from.
    """

    name: str
    capability: int
    flops: float
    bandwidth: float
    issue: float
    source: str


def _issue(multiprocessors: int, gigahertz: float) -> float:
    return multiprocessors * 4 * gigahertz * 1e9


GPUS = (
    Gpu(
        'A100 80 GB', 80, 250e12, 1.75e12, _issue(108, 1.41),
        'data sheet (312 TFLOP/s, 2.04 TB/s) times 0.8 and 0.86',
    ),
    Gpu(
        'H100 SXM', 90, 700e12, 3.0e12, _issue(132, 1.7),
        'data sheet (989 TFLOP/s, 3.35 TB/s) times 0.7 and 0.9',
    ),
    Gpu(
        'B200', 100, 1600e12, 6.9e12, _issue(148, 1.8),
        'data sheet (2250 TFLOP/s, 8 TB/s) times 0.7 and 0.86; clock assumed',
    ),
)  # fmt: skip


class Stage(NamedTuple):
    """The attention of a block of one stage: tokens T, windows, heads, width d, N per window."""

    tokens: int
    windows: int
    heads: int
    width: int
    positions: int


def blocks(case: Case) -> Iterator[Stage]:
    """The attention of every block of SwinV2-T, in order."""
    arch = ARCHITECTURES['tiny']
    shapes = case.map_shapes(arch['embed_dims'])
    for depth, heads, (batch, channels, *size) in zip(
        arch['depths'], arch['num_heads'], shapes, strict=True
    ):
        window = [min(case.window, side) for side in size]
        count = batch * math.prod(-(-s // w) for s, w in zip(size, window, strict=True))
        stage = Stage(batch * math.prod(size), count, heads, channels // heads, math.prod(window))
        yield from [stage] * depth


@dataclass(frozen=True)
class KernelCost:
    """What a kernel does, per tile of logits and per token.

    Attributes:
        tile: Queries and keys of a tile.
        instructions: Per warp and tile.
        warps: Of a program.
        products: Of matrices, per tile; each is 2 x queries x keys x width operations.
        channel_bytes: Bytes through memory per token and channel.
    """

    tile: tuple[int, int]
    instructions: int
    warps: int
    products: float
    channel_bytes: int

    def seconds(self, gpu: Gpu, stage: Stage) -> dict[str, float]:
        """The three bounds of one launch, by what limits it."""
        tiles = math.prod(-(-stage.positions // side) for side in self.tile)
        tiles *= stage.windows * stage.heads
        flops = 2 * math.prod(self.tile) * stage.width * self.products
        size = stage.tokens * stage.heads * stage.width * self.channel_bytes
        return {
            'tensor cores': tiles * flops / gpu.flops,
            'memory': size / gpu.bandwidth,
            'instructions': tiles * self.instructions * self.warps / gpu.issue,
        }

    @property
    def instructions_per_logit(self) -> float:
        """Instructions of a thread per logit."""
        return self.instructions * self.warps * WARP / math.prod(self.tile)


def bound(costs: list[KernelCost], gpu: Gpu, stage: Stage) -> tuple[float, str]:
    """Seconds that kernels take at least, one after the other, and what limits most of that."""
    total, by_limit = 0.0, dict.fromkeys(('tensor cores', 'memory', 'instructions'), 0.0)
    for cost in costs:
        bounds = cost.seconds(gpu, stage)
        limit = max(bounds, key=bounds.get)
        total += bounds[limit]
        by_limit[limit] += bounds[limit]
    return total, max(by_limit, key=by_limit.get)


def ideal(gpu: Gpu, stage: Stage, products: int, channel_bytes: int) -> float:
    """Seconds of the attention if only its N x N products and bytes counted, each byte once."""
    flops = 2 * products * stage.tokens * stage.positions * stage.heads * stage.width
    size = stage.tokens * stage.heads * stage.width * channel_bytes
    return max(flops / gpu.flops, size / gpu.bandwidth)
