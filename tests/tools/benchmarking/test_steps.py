"""What a step of the benchmark returns and takes."""

import pytest
import torch

from tools.benchmarking.cases import Case
from tools.benchmarking.steps import check_maps, peak_memory


def test_maps_are_checked():
    shapes = Case('infer', 72, 100, 8, 2, 'fp32').map_shapes(16)
    assert shapes == [(2, 16, 18, 25), (2, 32, 9, 13), (2, 64, 5, 7), (2, 128, 3, 4)]
    maps = [torch.zeros(shape) for shape in shapes]
    check_maps(maps, shapes)
    with pytest.raises(ValueError, match='of shapes'):
        check_maps(maps[:3], shapes)
    maps[2][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match='not finite'):
        check_maps(maps, shapes)


def test_peak_memory_is_that_of_the_step():
    class Step:
        def clear(self):
            pass

        def __call__(self):
            torch.ones(2**24)  # 64 MiB
            return torch.ones(2**22)

    step = Step()
    step()
    count, _ = peak_memory(step, 'cpu')
    assert 0.9 * 2**26 < count < 1.5 * 2**26
