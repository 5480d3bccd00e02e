"""Fused attention by Triton kernels, on NVIDIA GPUs from Ampere on, in bfloat16 and float16.

B images, H W map size in tokens, T = B * H * W, nH heads, d channels per head, C = nH * d,
N tokens per window.

Here the kernels of `triton_forward.py` and `triton_backward.py` are configured and launched.
Nothing of the size of the logits is in memory: the backward computes them again. The forward takes
two products for each tile of logits. The backward takes five where a tile has a whole window,
otherwise at most ten: four for the queries, four for keys and values, and two for the bias where it
needs a kernel of its own.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .triton_backward import backward_bias, backward_keys, backward_queries, backward_whole
from .triton_bias import reduce_to_table
from .triton_forward import forward
from .windows import WindowGrid

# Warps that a multiprocessor gets, of all programs of a kernel: each computes many windows.
_WARPS_PER_MULTIPROCESSOR = 16
# What Triton's interpreter stands for.
_INTERPRETED_MULTIPROCESSORS = 1


class Tile(NamedTuple):
    """How a kernel cuts the logits of a window, and is compiled."""

    queries: int
    keys: int
    warps: int
    stages: int


# For each kernel: up to N tokens per window and d channels per head, the tile. The first that fits
# is taken. Chosen without a GPU, by compiled code (docs/benchmarks/gpu_compiled.md): few registers
# spilled, and few instructions. Nothing was timed.
_ANY = 2**31
_KERNELS = {
    kernel.__name__: kernel
    for kernel in (forward, backward_whole, backward_queries, backward_keys, backward_bias)
}
TILES: dict[str, list[tuple[int, int, Tile]]] = {
    'forward': [
        (16, 64, Tile(16, 16, 1, 2)),
        (32, 64, Tile(32, 32, 2, 2)),
        (64, 64, Tile(64, 64, 4, 2)),
        (128, 64, Tile(64, 128, 8, 2)),
        (_ANY, 64, Tile(128, 64, 8, 1)),
    ],
    'backward_whole': [
        (16, 32, Tile(16, 16, 1, 2)),
        (16, 64, Tile(16, 16, 2, 2)),
        (32, 32, Tile(32, 32, 2, 2)),
        (32, 64, Tile(32, 32, 4, 2)),
        (64, 32, Tile(64, 64, 4, 1)),
    ],
    'backward_queries': [
        (64, 64, Tile(64, 32, 4, 1)),
        (_ANY, 32, Tile(128, 64, 8, 1)),
        (_ANY, 64, Tile(128, 32, 8, 1)),
    ],
    'backward_keys': [
        (64, 64, Tile(64, 32, 8, 1)),
        (128, 16, Tile(128, 64, 8, 1)),
        (128, 64, Tile(128, 32, 8, 1)),
        (_ANY, 32, Tile(128, 64, 8, 1)),
        (_ANY, 64, Tile(128, 32, 8, 1)),
    ],
    'backward_bias': [(_ANY, 64, Tile(128, 64, 8, 1))],
}


def find_tile(kernel: str, tokens: int, width: int) -> Tile | None:
    """The tile of a kernel for windows of N tokens and heads of d channels; None: of no use."""
    fitting = (tile for most, widest, tile in TILES[kernel] if tokens <= most and width <= widest)
    return next(fitting, None)


def plan(tokens: int, width: int) -> dict[str, Tile]:
    """The kernels that windows of N tokens and heads of d channels need, and their tiles."""
    tiles = {name: find_tile(name, tokens, width) for name in TILES}
    if tiles['backward_whole']:
        needed = ['forward', 'backward_whole']
    else:
        needed = ['forward', 'backward_queries', 'backward_keys']
        keys = tiles['backward_keys']
        if keys and keys.queries < tokens:
            needed.append('backward_bias')
    return {name: tile for name in needed if (tile := tiles[name])}


class _Attention:
    """Launches the kernels for one batch of maps."""

    def __init__(
        self,
        qkv: Tensor,
        scale: Tensor,
        table: Tensor,
        size: Sequence[int],
        window: Sequence[int],
        shifted: bool,
    ):
        self.inputs = qkv.contiguous(), scale.float().contiguous(), table.float().contiguous()
        self.heads, self.width = qkv.shape[2:]
        self.window = window
        self.tokens = math.prod(window)
        self.plan = plan(self.tokens, self.width)
        grid = WindowGrid((size[0], size[1]), (window[0], window[1]), shifted)
        rows, cols = (p // w for p, w in zip(grid.padded_size, window, strict=True))
        self.count = qkv.shape[0] // math.prod(size) * rows * cols
        self.sizes = (self.count, *size, *window, rows, cols, *grid.shift, self.heads)

    def programs(self, kernel: str) -> tuple[int, int]:
        """Tiles of a window that the programs of a kernel own, and programs that share the windows.

        The last axis of a launch has at most 65535 programs, fewer than there may be windows.
        """
        tile = self.plan[kernel]
        of_queries, of_keys = (
            triton.cdiv(self.tokens, tile.queries),
            triton.cdiv(self.tokens, tile.keys),
        )
        tiles = {
            'forward': of_queries,
            'backward_whole': 1,
            'backward_queries': of_queries,
            'backward_keys': of_keys,
            'backward_bias': of_queries * of_keys,
        }[kernel]
        device = self.inputs[0].device
        multiprocessors = (
            torch.cuda.get_device_properties(device).multi_processor_count
            if device.type == 'cuda'
            else _INTERPRETED_MULTIPROCESSORS
        )
        wanted = multiprocessors * _WARPS_PER_MULTIPROCESSOR // tile.warps
        return tiles, min(triton.cdiv(wanted, self.heads * tiles), self.count)

    def launch(self, name: str, *tensors: Tensor) -> None:
        tile = self.plan[name]
        with torch.cuda.device_of(tensors[0]):
            _KERNELS[name][(self.heads, *self.programs(name))](
                *tensors,
                *self.sizes,
                **_constants(name, tile, self.tokens, self.width),
                num_warps=tile.warps,
                num_stages=tile.stages,
            )

    def forward(self) -> Tensor:
        qkv = self.inputs[0]
        out = qkv.new_empty(qkv.shape[0], self.heads * self.width)
        self.launch('forward', *self.inputs, out)
        return out

    def backward(self, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the three inputs, the latter two in float32."""
        qkv, scale, _ = self.inputs
        inputs = grad_out.contiguous(), *self.inputs
        grad_qkv = torch.empty_like(qkv)
        # The last of the kernels owns the tiles of the bias.
        tiles, programs = self.programs(next(reversed(self.plan)))
        sums = (
            scale.new_empty(programs, self.heads, self.tokens, self.tokens),
            scale.new_empty(programs * tiles, self.heads),
        )
        if 'backward_whole' in self.plan:
            self.launch('backward_whole', *inputs, grad_qkv, *sums)
        else:
            softmax = scale.new_empty(2, qkv.shape[0], self.heads).unbind()
            self.launch('backward_queries', *inputs, grad_qkv, *softmax)
            self.launch('backward_keys', *inputs, *softmax, grad_qkv, *sums)
            if 'backward_bias' in self.plan:
                self.launch('backward_bias', *inputs, *softmax, *sums)
        return grad_qkv, sums[1].sum(0).view_as(scale), self.reduce(sums[0])

    def reduce(self, bias_sums: Tensor) -> Tensor:
        """Gradient of the table from the programs' sums for the bias, ``(programs, nH, N, N)``."""
        table = self.inputs[2]
        total, grad_table = bias_sums.sum(0), torch.empty_like(table)
        height, width = self.window
        cols = triton.next_power_of_2(2 * width - 1)
        with torch.cuda.device_of(table):
            reduce_to_table[(self.heads, 2 * height - 1)](
                total, grad_table, height, width, ROWS=max(1, 2048 // cols), COLS=cols
            )
        return grad_table


def _constants(name: str, tile: Tile, tokens: int, width: int) -> dict[str, Any]:
    """The compile-time constants of a kernel."""
    if name == 'backward_whole':
        return {'D': width, 'SIDE': tile.keys}
    constants = {'D': width, 'QUERIES': tile.queries, 'KEYS': tile.keys}
    if name in ('backward_queries', 'backward_bias'):
        return constants
    owned = tile.queries if name == 'backward_keys' else tile.keys
    return {**constants, 'ONE_TILE': owned >= tokens}


def attend_by_triton(
    qkv: Tensor,
    scale: Tensor,
    table: Tensor,
    size: Sequence[int],
    window: Sequence[int],
    shifted: bool,
    windows_at_once: int | None = None,
) -> Tensor:
    """See `fused_attention.attend`; `windows_at_once` has nothing to bound."""
    return _Attention(qkv, scale, table, size, window, shifted).forward()


def attend_by_triton_backward(
    grad_out: Tensor,
    qkv: Tensor,
    scale: Tensor,
    table: Tensor,
    size: Sequence[int],
    window: Sequence[int],
    shifted: bool,
    windows_at_once: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _Attention(qkv, scale, table, size, window, shifted).backward(grad_out)
    return grads[0], grads[1].to(scale.dtype), grads[2].to(table.dtype)
