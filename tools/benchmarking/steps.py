"""One step of a contestant: what is timed, and how its time and its memory are measured."""

import ctypes
import gc
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tools.benchmarking.cases import Case

TORCH_DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


class NetworkStep:
    """A forward, or a forward and a backward without an optimiser.

    Args:
        network: ``(B, 3, H, W)`` to a list of maps.
        case: What to do.
        device: 'cpu' or 'cuda'; the network is there already.
    """

    def __init__(self, network: nn.Module, case: Case, device: str):
        self.network = network
        self.device = device
        self.dtype = TORCH_DTYPES[case.dtype]
        self.train = case.mode == 'train'
        generator = torch.Generator().manual_seed(1)
        self.picture = torch.randn(case.batch, 3, case.height, case.width,
                                   generator=generator).to(device)

    def clear(self) -> None:
        """Drop the gradients of the last step."""
        self.network.zero_grad(set_to_none=True)

    def __call__(self) -> list[Tensor]:
        """Do the step; returns the maps."""
        self.clear()
        with (torch.set_grad_enabled(self.train),
              torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)):
            maps = self.network(self.picture)
        if self.train:
            sum(each.float().square().mean() for each in maps).backward()
        return maps


def check_maps(maps: list[Tensor], shapes: list[tuple[int, ...]]) -> None:
    """Raise a ValueError unless maps have these shapes and are finite."""
    found = [tuple(each.shape) for each in maps]
    if found != shapes:
        raise ValueError(f'its maps are of shapes {found}, not {shapes}')
    if not all(each.isfinite().all() for each in maps):
        raise ValueError('its maps are not finite')


def wait_for(device: str) -> None:
    """Wait until a device has done all it was given."""
    if device == 'cuda':
        torch.cuda.synchronize()


def timed(step: Callable[[], object], device: str) -> float:
    """Seconds that a step takes."""
    wait_for(device)
    begin = time.perf_counter()
    result = step()
    wait_for(device)
    seconds = time.perf_counter() - begin
    del result  # Freeing what the step returned is not part of it.
    return seconds


def trim(device: str) -> None:
    """Give freed memory back to the system (glibc) or the device."""
    gc.collect()
    if device == 'cuda':
        torch.cuda.empty_cache()
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):
        libc.malloc_trim(0)


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(key + ':'):
            return int(line.split()[1]) * 1024
    raise OSError(f'/proc/self/status has no {key}')


def peak_memory(step: NetworkStep, device: str) -> tuple[int, str]:
    """Bytes that a step needs at its peak, on top of weights and picture, and how it was measured.

    That is activations, workspaces, and in training the gradients of the weights. On CUDA it is
    torch's own count. On a CPU it is the peak of the resident set during the step minus the
    resident set before: freed memory is given back first, so that the step has to take its own,
    and the kernel's record of the peak is reset ('clear_refs'). Where the kernel does not let us,
    it is the peak of the whole life of the process ('ru_maxrss'), which is the same in a process
    that has done no larger step. A step like this must have been done before: the first one also
    loads code and starts threads.
    """
    step.clear()
    trim(device)
    wait_for(device)
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before, 'max_memory_allocated'
    before = _status('VmRSS')
    try:
        Path('/proc/self/clear_refs').write_text('5')
        how = 'clear_refs'
    except OSError:
        how = 'ru_maxrss'
    step()
    peak = (_status('VmHWM') if how == 'clear_refs'
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return max(peak - before, 0), how
