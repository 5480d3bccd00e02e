"""Ratios of times and bytes. No times are judged."""

import pytest

from tools.benchmarking.statistics import summarize


def test_ratios():
    measured = {
        'ours': dict(seconds=[1.0, 2.0, 3.0, 10.0, 4.0], bytes=50),
        'timm': dict(seconds=[3.0, 6.0, 6.0, 30.0, 8.0], bytes=200),
        'torchvision': dict(seconds=[7.0, 7.0, 7.0, 7.0, 7.0], bytes=100),
        'swin_v1': dict(seconds=[0.5] * 5, bytes=10),
        'gemm': dict(seconds=[1.5] * 5, bytes=10),
    }
    found = summarize(measured, multiply_adds=3 * 10**9)
    assert found['fastest_implementation'] == 'timm', 'V1 is no implementation of V2'
    assert found['smallest_implementation'] == 'torchvision'
    assert found['speed_ratio'] == 6 / 3
    assert found['speed_ratio_by_round'] == 3
    assert found['memory_ratio'] == 0.5
    assert found['gemm_gflops'] == pytest.approx(4)
    ours = measured['ours']
    assert (ours['median'], ours['iqr'], ours['min']) == (3, 2, 1)
    assert ours['limit_fraction'] == 0.5
    assert measured['swin_v1']['speed'] == 12


def test_ratios_without_ours_or_others():
    assert summarize({}, None)['speed_ratio'] is None
    alone = {'ours': dict(seconds=[1.0], bytes=1)}
    assert summarize(alone, None)['memory_ratio'] is None
    assert alone['ours']['speed'] is None
    assert summarize({'timm': dict(seconds=[1.0], bytes=1)}, None)['speed_ratio'] is None


def test_each_network_counts_in_its_fastest_execution():
    times = {'ours': 3.0, 'ours+graph': 2.0, 'ours_sdpa': 1.0, 'timm': 8.0, 'timm+compile': 6.0}
    measured = {name: dict(seconds=[time], bytes=100 * time) for name, time in times.items()}
    found = summarize(measured, None)
    assert found['fastest_ours'] == 'ours+graph', 'SDPA is forced by the user, and not what runs'
    assert found['fastest_implementation'] == 'timm+compile'
    assert found['speed_ratio'] == 3
    assert found['memory_ratio'] == pytest.approx(1 / 3)
