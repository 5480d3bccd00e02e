"""Recording the launches of kernels."""

import pytest
import torch

triton = pytest.importorskip('triton')
import triton.language as tl

from tests.helpers.triton_interpreter import INTERPRETING
from tools.gpu.launches import recorded

pytestmark = pytest.mark.skipif(INTERPRETING, reason='interpreted kernels have another launcher')


@triton.jit(do_not_specialize=['count'])
def kernel(x, y, count, stride, factor, SIZE: tl.constexpr):
    pass


def record(*args, **kwargs):
    with recorded() as launches:
        kernel[(3, 2)](*args, **kwargs)
    (launch,) = launches
    return launch


def test_launch_is_specialized_as_by_triton():
    x = torch.empty(4, dtype=torch.bfloat16)
    launch = record(x, None, 1, 32, 0.5, SIZE=8, num_warps=2)
    assert dict(launch.signature) == {
        'x': '*bf16', 'y': 'constexpr', 'count': 'i32', 'stride': 'i32', 'factor': 'fp32',
        'SIZE': 'constexpr',
    }  # fmt: skip
    assert dict(launch.constants) == {'y': None, 'SIZE': 8}
    assert launch.divisible == ('x', 'stride')
    assert dict(launch.options) == {'num_warps': 2, 'num_stages': 3}
    assert launch.grid == (3, 2)
    assert launch.name == 'test_launches.kernel'


def test_one_is_a_constant_unless_it_is_not_specialized():
    launch = record(torch.empty(4), torch.empty(4), 1, 1, 1.0, 8)
    assert dict(launch.constants) == {'stride': 1, 'SIZE': 8}


def test_large_numbers_are_64_bits():
    assert dict(record(None, None, 2**31, 5, 1.0, 8).signature)['count'] == 'i64'


def test_equal_launches_are_one():
    def launch(rows, size):
        return record(torch.empty(4), None, rows, 5, 1.0, size)

    assert launch(2, 8) == launch(7, 8)
    assert len({launch(2, 8), launch(3, 8), launch(2, 16)}) == 2
