"""What is installed for the runs of `make floors`."""

import re

from tools.misc import check_torch


def test_floor_is_that_of_setup_py():
    assert re.fullmatch(r'\d+\.\d+', check_torch.floor())
    assert check_torch.requirements('floor')[0] == f'torch=={check_torch.floor()}.*'


def test_other_versions():
    assert check_torch.requirements('newest')[:2] == ['torch', 'mmengine']
    assert check_torch.requirements('2.7.1')[:2] == ['torch==2.7.1', 'mmengine']
    assert check_torch.requirements('2.13')[:2] == ['torch==2.13.*', 'mmengine']


def test_core_tests_exist():
    for path in check_torch.core_tests():
        assert (check_torch.ROOT / path).exists(), path
