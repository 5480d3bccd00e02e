"""Time the kernels of the attention with other tiles than the package's: a line of JSON for each.

A kernel of the backward is timed with the others that the backward launches, which stay as they
are. The best tiles are printed as entries of `TILES` in layers/triton_attention.py. On a GPU all
are compiled first, by processes side by side, into Triton's cache; what does not compile is not
timed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_context
from unittest import mock

import torch
import triton

from swinv2_backbone.layers import triton_attention
from swinv2_backbone.layers.triton_attention import TILES, Tile
from tools.benchmarking.device import capture, step_seconds
from tools.gpu.budget import Budget

# Side of a map, side of a window, heads, width, batch: the first stage at 512 pixels, whose
# attention takes the longest.
_SHAPES = ((128, 16, 3, 32, 8), (128, 8, 3, 32, 8))
_DRY_SHAPES = ((8, 4, 1, 16, 1),)
_SIDES = (16, 32, 64, 128, 256)
_WARPS = (1, 2, 4, 8)
_STAGES = (1, 2, 3)
# Logits of a tile per thread: fewer leave tensor cores idle, more spill for certain.
_LEAST, _MOST = 8, 128
_ROUNDS, _REPEATS = 20, 10
# For each kernel and shape.
_CANDIDATES, _DRY_CANDIDATES = 30, 2


class Attention:
    """The attention of one shape on a device, forward or backward."""

    def __init__(self, shape: tuple[int, int, int, int, int], device: str):
        side, window, heads, width, batch = shape
        self.tokens, self.width, self.device = window**2, width, device
        generator = torch.Generator().manual_seed(0)

        def normal(*sizes: int) -> torch.Tensor:
            return torch.randn(*sizes, generator=generator).to(device)

        count = batch * side**2
        qkv = normal(count, 3, heads, width).to(torch.bfloat16)
        table = normal(heads, (2 * window - 1) ** 2)
        self.inputs = qkv, 10 + normal(heads, 1, 1).abs(), table
        self.windows = (side, side), (window, window), True
        self.grad = normal(count, heads * width).to(torch.bfloat16)

    def step(self, kernel: str) -> Callable[[], object]:
        """What launches a kernel: the forward, or the whole backward."""
        args = *self.inputs, *self.windows
        if kernel == 'forward':
            return lambda: triton_attention.attend_by_triton(*args)
        return lambda: triton_attention.attend_by_triton_backward(self.grad, *args)

    def seconds(self, kernel: str, tile: Tile | None, rounds: int) -> float:
        """The median of such a step, with a tile for the kernel or with the package's.

        On a GPU it is repeated in a CUDA graph: a launch takes longer than many a kernel.
        """
        repeats = _REPEATS if self.device == 'cuda' else 1
        step = self.step(kernel)
        with use_tile(kernel, self.tokens, self.width, tile):
            replay = capture(lambda: [step() for _ in range(repeats)], self.device)
            return statistics.median(step_seconds(replay, self.device, 1 + rounds)[1:]) / repeats


@contextlib.contextmanager
def use_tile(kernel: str, tokens: int, width: int, tile: Tile | None) -> Iterator[None]:
    """A block in which a kernel has a tile for windows of N tokens and heads of d channels."""
    added = [] if tile is None else [(tokens, width, tile)]
    with mock.patch.dict(TILES, {kernel: [*added, *TILES[kernel]]}):
        yield


def candidates(kernel: str, tokens: int, width: int) -> Iterator[Tile]:
    """Tiles that are worth trying, neighbors of the package's first, which is not among them.

    For a window within one tile the tile is as large as the window.
    """
    most = 2 ** math.ceil(math.log2(max(16, tokens)))
    sides = [side for side in _SIDES if side <= most]
    found = [
        Tile(queries, keys, warps, stages)
        for queries, keys, warps, stages in itertools.product(sides, sides, _WARPS, _STAGES)
        if _LEAST <= queries * keys // (32 * warps) <= _MOST
        and (kernel != 'backward_whole' or queries == keys == most)
    ]
    chosen = triton_attention.find_tile(kernel, tokens, width)
    others = (tile for tile in found if tile != chosen)
    yield from sorted(others, key=lambda tile: _distance(tile, chosen))


def _distance(tile: Tile, other: Tile) -> float:
    return sum(abs(math.log2(a / b)) for a, b in zip(tile, other, strict=True))


def _show(kernel: str, where: str, configuration: str, seconds: float | None, note: str) -> None:
    record = dict(kernel=kernel, where=where, configuration=configuration)
    print(json.dumps(record | dict(seconds=seconds, note=note)), flush=True)


def compile_tile(shape: tuple, kernel: str, tile: Tile) -> None:
    """Compile a kernel with a tile into the cache that all processes share."""
    run = triton.JITFunction.run

    def only_compile(self, *args, warmup, **kwargs):
        return run(self, *args, warmup=True, **kwargs)

    _, *rest, _ = shape
    small = Attention((2 * shape[1], *rest, 1), 'cpu')  # Nothing is computed.
    with (
        mock.patch.object(triton.JITFunction, 'run', only_compile),
        use_tile(kernel, small.tokens, small.width, tile),
    ):
        small.step(kernel)()


def compile_all(todo: list[tuple[tuple, str, Tile]], budget: Budget) -> set:
    """Compile what there is time for; returns what was compiled."""
    workers = max(1, (os.cpu_count() or 1) // 2)
    with ProcessPoolExecutor(workers, mp_context=get_context('spawn')) as pool:
        futures = {pool.submit(compile_tile, *each): each for each in todo}
        done, _ = wait(futures, timeout=budget.left)
        pool.shutdown(wait=False, cancel_futures=True)
    return {futures[each] for each in done if not each.exception()}


def try_tiles(shape: tuple, kernel: str, device: str, budget: Budget, tiles: list[Tile]) -> None:
    """Time a kernel's tiles for one shape, and print the best as an entry of TILES."""
    attention = Attention(shape, device)
    where = 'map {0} x {0}, window {1}, {2} heads of {3}, batch {4}'.format(*shape)
    rounds = 1 if device == 'cpu' else _ROUNDS
    ours = attention.seconds(kernel, None, rounds)
    _show(kernel, where, 'as it is', ours, '1.00')
    best = ours, None
    for tile in tiles:
        if not budget.left:
            break
        try:
            seconds = attention.seconds(kernel, tile, rounds)
        except Exception as error:  # Triton raises many kinds; too much shared memory is one.
            _show(kernel, where, str(tuple(tile)), None, type(error).__name__)
            continue
        _show(kernel, where, str(tuple(tile)), seconds, f'{seconds / ours:.2f}')
        best = min(best, (seconds, tile), key=lambda pair: pair[0])
    if best[1] is not None:
        entry = f"TILES['{kernel}']: ({attention.tokens}, {attention.width}, {best[1]})"
        _show(kernel, where, entry, best[0], 'best')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', choices=['cuda', 'cpu'], required=True)
    parser.add_argument('--dry', action='store_true', help='tiny sizes, two tiles')
    parser.add_argument('--seconds', type=float, default=60)
    args = parser.parse_args()
    budget = Budget(args.seconds)
    shapes = _DRY_SHAPES if args.dry else _SHAPES
    todo = [
        (shape, kernel)
        for shape in shapes
        for kernel in triton_attention.plan(shape[1] ** 2, shape[3])
    ]
    count = _DRY_CANDIDATES if args.dry else _CANDIDATES
    chosen = {
        (shape, kernel): list(itertools.islice(candidates(kernel, shape[1] ** 2, shape[3]), count))
        for shape, kernel in todo
    }
    if args.device == 'cuda':
        every = [(*key, tile) for key, tiles in chosen.items() for tile in tiles]
        compiled = compile_all(every, Budget(budget.left / 2))
        chosen = {
            key: [tile for tile in tiles if (*key, tile) in compiled]
            for key, tiles in chosen.items()
        }
    for index, (key, tiles) in enumerate(chosen.items()):
        # What is left is shared: no kernel is left out because of those before it.
        share = Budget(budget.left / (len(chosen) - index))
        try_tiles(*key, args.device, share, tiles)


if __name__ == '__main__':
    main()
