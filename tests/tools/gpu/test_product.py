"""What is recorded of the package's launches."""

import pytest

pytest.importorskip('triton')

from tests.helpers.triton_interpreter import INTERPRETING
from tools.gpu.product import DTYPES, WIDTHS, WINDOWS, launches_by_use

pytestmark = pytest.mark.skipif(INTERPRETING, reason='interpreted kernels have another launcher')


def test_every_window_and_width_is_there_forward_and_backward():
    found = launches_by_use()
    names = {use: set() for uses in found.values() for use in uses}
    for launch, uses in found.items():
        for use in uses:
            names[use].add(launch.name.rpartition('.')[2])
    for window in WINDOWS:
        for width in WIDTHS:
            for dtype in DTYPES:
                kernels = names[f'window {window}, d {width}, {dtype}']
                assert 'forward' in kernels
                assert any(name.startswith('backward') for name in kernels)
    assert names['C 768, bf16, x fp32'] == {'forward', 'backward', 'add_rows'}


def test_quick_has_each_kernel_once():
    every, quick = launches_by_use(), launches_by_use(quick=True)
    assert sorted(launch.name for launch in quick) == sorted({launch.name for launch in every})
