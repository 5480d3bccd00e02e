"""The peak of memory counts what is allocated after the start, and only that."""

import sys

import pytest
import torch

from tools.utils.memory import PeakMemory

MEBIBYTE = 2**20


@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
def test_peak_of_what_is_allocated_and_freed():
    held = torch.ones(32 * MEBIBYTE // 4)
    memory = PeakMemory('cpu')
    if memory.how == 'ru_maxrss':
        pytest.skip('this kernel does not reset the peak')
    freed = torch.ones(64 * MEBIBYTE // 4)
    del freed
    taken, how = memory.taken()
    assert how == 'clear_refs'
    assert 63 * MEBIBYTE < taken < 80 * MEBIBYTE
    assert held[0] == 1
