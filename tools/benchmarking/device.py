"""What a benchmark does with a CUDA device, and in its place on a CPU: both run the same code."""

import contextlib
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tools.benchmarking.steps import timed
from tools.utils.memory import wait_for

# Steps before a capture, on a stream of their own: libraries make their handles and workspaces.
_WARM_UP = 3


def step_seconds(step: Callable[[], object], device: str, rounds: int) -> list[float]:
    """Seconds of each of a number of steps, one after the other without a pause.

    On CUDA they are the times between events, as the device sees them: while the host is ahead,
    the device's work alone, else what the device waits for the host, too.
    """
    if device != 'cuda':
        return [timed(step, device) for _ in range(rounds)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    wait_for(device)
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    wait_for(device)
    return [begin.elapsed_time(end) / 1e3 for begin, end in itertools.pairwise(marks)]


def capture(
    step: Callable[[], list[Tensor]], device: str, clear: Callable[[], None] = lambda: None
) -> Callable[[], list[Tensor]]:
    """A step that replays a CUDA graph of this one, with the same image; on a CPU the step itself.

    What it returns, and the gradients, are tensors that each replay overwrites.

    Args:
        clear: Drops the gradients of the steps before, so that new ones are in the graph's memory.
    """
    if device != 'cuda':
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    clear()
    with torch.cuda.graph(graph):
        maps = step()

    def replay() -> list[Tensor]:
        graph.replay()
        return maps

    return replay


def profile_table(step: Callable[[], object], device: str, rows: int = 25) -> str:
    """torch's profile of one step: its operators and kernels, by the time of the device."""
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == 'cuda')]
    wait_for(device)
    with profile(activities=activities) as profiled:
        step()
        wait_for(device)
    of_device = 'self_cuda_time_total' if device == 'cuda' else 'self_cpu_time_total'
    return profiled.key_averages().table(
        sort_by=of_device, row_limit=rows, max_name_column_width=60
    )


def ceilings(device: str, side: int, megabytes: int) -> dict[str, float]:
    """What a large product in bf16 and a large copy reach: operations and bytes per second."""
    a, b = torch.randn(2, side, side, device=device).to(torch.bfloat16)
    source = torch.randn(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    results = {
        'bf16_flops': (2 * side**3, lambda: a @ b),
        'copy_bytes': (2 * source.nbytes, lambda: target.copy_(source)),
    }
    return {
        name: count / sorted(step_seconds(step, device, 9)[1:])[4]
        for name, (count, step) in results.items()
    }


@contextlib.contextmanager
def _synchronizing_is_an_error():
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


def without_synchronizing(device: str) -> AbstractContextManager:
    """A block in which torch raises a RuntimeError where the host would wait for the device."""
    return _synchronizing_is_an_error() if device == 'cuda' else contextlib.nullcontext()


@contextlib.contextmanager
def uninitialized_memory_is_nan():
    """A block in which torch fills what it allocates without a value (`empty`) with NaN.

    An element that nothing writes is then found. (A kernel that is not deterministic only warns.)
    """
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
