"""How much memory something takes at its peak."""

import ctypes
import gc
from pathlib import Path

import torch


def wait_for(device: str) -> None:
    """Wait until a device ('cpu' or 'cuda') has done all it was given."""
    if device == 'cuda':
        torch.cuda.synchronize()


def trim(device: str) -> None:
    """Give freed memory back to the system (glibc) or the device."""
    gc.collect()
    if device == 'cuda':
        torch.cuda.empty_cache()
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):
        libc.malloc_trim(0)


class PeakMemory:
    """What is taken at the peak, from now on, on top of what is held now.

    On CUDA it is torch's own count. On a CPU it is the peak of the process's resident set minus the
    resident set now: freed memory is given back first, so that whatever comes has to take its own,
    and the kernel's record of the peak is reset ('clear_refs'). Where the kernel does not let us,
    it is the peak of the whole life of the process ('ru_maxrss'), which is the same in a process
    that has not taken more before.

    Args:
        device: 'cpu' or 'cuda'.
    """

    def __init__(self, device: str):
        self.device = device
        trim(device)
        wait_for(device)
        if device == 'cuda':
            self.how = 'max_memory_allocated'
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        self.before = _status('VmRSS')
        try:
            Path('/proc/self/clear_refs').write_text('5')
            self.how = 'clear_refs'
        except OSError:
            self.how = 'ru_maxrss'

    def taken(self) -> tuple[int, str]:
        """Bytes, and how they were measured."""
        wait_for(self.device)
        if self.device == 'cuda':
            peak = torch.cuda.max_memory_allocated()
        elif self.how == 'clear_refs':
            peak = _status('VmHWM')
        else:
            import resource  # Not on every system.

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return max(peak - self.before, 0), self.how


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(key + ':'):
            return int(line.split()[1]) * 1024
    raise OSError(f'/proc/self/status has no {key}')
