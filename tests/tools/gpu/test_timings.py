"""Every case is measured to its end, whatever happens to one network."""

import argparse

import pytest

from tools.benchmarking.cases import Case
from tools.benchmarking.process import WorkerError
from tools.gpu import timings
from tools.gpu.budget import Budget
from tools.gpu.timings import COMPILED, NETWORKS, Compilation, Settings, Timings

CASE = Case('train', 64, 64, 8, 1, 'bf16')


class FakeWorker:
    """A process that fails where `failures` says so, and notes all that it is asked."""

    failures: dict = {}  # noqa: RUF012 (set by each test)
    started: list = []  # noqa: RUF012

    def __init__(self, network, *_):
        self.network, self.compiled, self.closed, self.asked = network, False, False, []
        self.started.append(self)

    def request(self, do, timeout, **more):
        assert not self.closed
        assert timeout > 0
        self.asked.append(do)
        self.compiled |= bool(more.get('compile'))
        key = self.network + '+compile' * self.compiled, do
        if key in self.failures:
            raise WorkerError(self.failures[key])
        speed = 1.0 if self.network == 'ours' else 2.0
        return {
            'measure': dict(seconds=[speed] * more.get('rounds', 0)),
            'memory': dict(bytes=100, how='counted'),
            'capture': dict(bytes=120, how='counted'),
        }.get(do, {})

    def kill(self):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def measure(monkeypatch):
    """A function that measures CASE, with failures by (name, request), and the fake workers."""
    monkeypatch.setattr(timings, 'Worker', FakeWorker)
    monkeypatch.setattr(timings, 'DRY_CASES', (CASE,))
    settings = Settings(
        argparse.Namespace(
            dry=True, device='cpu', threads=1, implementations_folder=None, drop_path=0.2
        )
    )

    def run(seconds=60, **failures):
        FakeWorker.failures = {tuple(k.split(' ')): v for k, v in failures.items()}
        FakeWorker.started = []
        compilation = Compilation(settings, Budget(60))
        compilation.stop(60)
        each = Timings(settings, Budget(seconds), compilation)
        result = each.run(CASE)
        alive = [worker for worker in FakeWorker.started if not worker.closed]
        assert sorted(worker.network for worker in alive) == sorted(each.eager)
        each.close()
        compilation.close()
        assert all(worker.closed for worker in FakeWorker.started)
        return result, sorted(each.eager)

    return run


def test_all_networks_in_all_executions(measure):
    result, eager = measure()
    names = [*NETWORKS, *(name + '+compile' for name in COMPILED)]
    names += [name + '+graph' for name in names]
    assert sorted(result['implementations']) == sorted(names)
    assert result['left_out'] == {}
    assert eager == sorted(NETWORKS)
    ours = result['implementations']['ours']
    assert len(ours['passes']) == timings.PASSES
    assert len(ours['seconds']) == timings.PASSES * 2
    assert result['speed_ratio'] == 2
    assert result['waits_for_device'] == dict.fromkeys(
        ('ours', 'ours_sdpa', 'ours+compile'), 'never'
    )


def test_second_pass_is_left_out_when_the_time_runs_out(measure):
    result, _ = measure(seconds=timings.LEAST / 2)
    assert result['left_out'] == {}
    assert all(len(each['passes']) == 1 for each in result['implementations'].values())


def test_memory_is_given_back_after_each_network(measure):
    measure()
    for worker in FakeWorker.started:
        assert worker.asked[-1] == 'trim'
        requests = [do for do in worker.asked if do in ('measure', 'capture', 'trim')]
        assert requests[-4:] == ['measure', 'capture', 'measure', 'trim']


def test_network_that_cannot_be_captured_keeps_its_other_times(measure):
    result, eager = measure(**{'timm capture': 'operation not permitted'})
    assert result['left_out'] == {'timm+graph': 'operation not permitted'}
    assert len(result['implementations']['timm']['seconds']) == timings.PASSES * 2
    assert 'timm' not in eager, 'its process is not used again'


def test_network_that_fails_is_left_out(measure):
    result, eager = measure(**{'ours build': 'illegal memory access', 'swin_v1 measure': 'no'})
    assert result['left_out'] == {'ours': 'illegal memory access', 'swin_v1': 'no'}
    assert 'ours+compile' in result['implementations']
    assert 'ours' not in result['implementations']
    assert eager == ['ours_sdpa', 'timm']


def test_compilation_that_fails_is_left_out(measure):
    result, _ = measure(**{'timm+compile build': 'BackendCompilerFailed: no'})
    assert result['left_out'] == {'timm+compile': 'BackendCompilerFailed: no'}


def test_compilation_without_memory_is_tried_again_alone(measure):
    measure(**{'timm+compile build': 'OutOfMemoryError: CUDA out of memory'})
    tries = [w for w in FakeWorker.started if w.network == 'timm' and w.compiled]
    assert len(tries) == 2


def test_waiting_for_the_device_is_reported_and_no_failure(measure):
    result, _ = measure(**{'ours check_synchronization': 'called a synchronizing operation'})
    assert result['waits_for_device']['ours'] == 'called a synchronizing operation'
    assert 'ours' in result['implementations']


def test_what_is_not_compiled_in_time_is_left_out(monkeypatch, measure):
    monkeypatch.setattr(Compilation, '_compile', lambda *_: None)
    result, _ = measure()
    reason = 'was not compiled in time'
    assert result['left_out'] == {name + '+compile': reason for name in COMPILED}
