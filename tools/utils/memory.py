"""Peak memory of a part of a program, on a CPU or a CUDA device."""

import ctypes
import gc
from pathlib import Path

import torch


def wait_for(device: str) -> None:
    """Wait until a device ('cpu' or 'cuda') has finished its queued work."""
    if device == 'cuda':
        torch.cuda.synchronize()


def trim(device: str) -> None:
    """Give freed memory back to the operating system (glibc) or the device."""
    gc.collect()
    if device == 'cuda':
        torch.cuda.empty_cache()
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):
        libc.malloc_trim(0)


class PeakMemory:
    """Measures the peak of memory from its construction on, beyond what is allocated then.

    On CUDA it is torch's own count. On a CPU it is the peak of the process's resident set minus the
    resident set at the start: freed memory is given back first, so that later allocations count,
    and the kernel's record of the peak is reset ('clear_refs'). Where the kernel does not allow
    that, the peak of the whole life of the process is used ('ru_maxrss'), which is the same unless
    the process needed more before.

    Raises:
        OSError: If the device is 'cpu' and the system has no /proc.
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
        """Bytes at the peak, and the method by which they were measured."""
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
    """An entry of /proc/self/status, in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(key + ':'):
            return int(line.split()[1]) * 1024
    raise OSError(f'/proc/self/status has no {key}')
