"""Timing, capturing and the rest of what a benchmark does with a device.

The calls of CUDA are checked against torch's own signatures, without a GPU.
"""

from unittest import mock

import pytest
import torch

from tools.benchmarking import device
from tools.benchmarking.cases import Case
from tools.benchmarking.steps import NetworkStep


@pytest.fixture
def step():
    """A training step of a network that maps images to themselves."""
    network = torch.nn.Conv2d(3, 3, 1)
    each = NetworkStep(network, Case('train', 8, 8, 8, 1, 'fp32'), 'cpu')
    each.network = lambda x: [network(x)]
    each.network.zero_grad = network.zero_grad
    return each


@pytest.fixture
def cuda(monkeypatch):
    """torch.cuda without a GPU: what is called must exist, and take these arguments."""
    names = 'Event', 'Stream', 'CUDAGraph', 'current_stream', 'synchronize', 'set_sync_debug_mode'
    mocks = {name: mock.create_autospec(getattr(torch.cuda, name)) for name in names}
    mocks |= {name: mock.MagicMock() for name in ('stream', 'graph')}
    for name, each in mocks.items():
        monkeypatch.setattr(torch.cuda, name, each)
    return mocks


def test_seconds_of_each_step_on_a_cpu(step):
    assert len(device.step_seconds(step, 'cpu', 3)) == 3


def test_seconds_are_those_between_events(cuda):
    events = cuda['Event'].return_value
    events.elapsed_time.side_effect = [2.0, 3.0]
    step = mock.Mock()
    assert device.step_seconds(step, 'cuda', 2) == [0.002, 0.003]
    assert step.call_count == 2
    assert events.record.call_count == 3
    assert cuda['synchronize'].call_count == 2


def test_capture_warms_up_and_replays(step, cuda):
    step.clear = mock.Mock(side_effect=step.clear)
    replay = device.capture(step, 'cuda', step.clear)
    graph = cuda['CUDAGraph'].return_value
    cuda['graph'].assert_called_once_with(graph)
    warm_up, captured = device._WARM_UP, 1
    # Each step drops the gradients, and once more the capture, to have them in its own memory.
    assert step.clear.call_count == warm_up + captured + 1
    (maps,) = replay()
    graph.replay.assert_called_once_with()
    assert maps.shape == (1, 3, 8, 8)
    assert replay()[0] is maps


def test_capture_on_a_cpu_is_the_step_itself(step):
    assert device.capture(step, 'cpu') is step


def test_synchronizing_is_allowed_again_afterwards(cuda):
    block = device.without_synchronizing('cuda')
    block.__enter__()
    cuda['set_sync_debug_mode'].assert_called_with('error')
    assert not block.__exit__(KeyError, KeyError(), None)
    cuda['set_sync_debug_mode'].assert_called_with('default')
    with device.without_synchronizing('cpu'):
        pass


def test_memory_without_a_value_is_nan():
    with device.uninitialized_memory_is_nan():
        for made in (torch.empty(5), torch.ones(5).new_empty(5), torch.empty_like(torch.ones(5))):
            assert made.isnan().all()
        assert torch.zeros(5).eq(0).all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_profile_names_the_operators(step):
    assert 'aten::convolution' in device.profile_table(step, 'cpu', rows=100)


def test_ceilings_are_rates():
    assert set(device.ceilings('cpu', 16, 1)) == {'bf16_flops', 'copy_bytes'}
    assert all(rate > 0 for rate in device.ceilings('cpu', 16, 1).values())
