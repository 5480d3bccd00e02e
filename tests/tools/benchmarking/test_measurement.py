"""A case is measured to its end, whatever happens to one implementation."""

from tools.benchmarking import measurement
from tools.benchmarking.arguments import cases_of, parse_args
from tools.benchmarking.process import WorkerError


def test_implementation_that_fails_in_a_round_is_left_out(monkeypatch):
    """With its times, and the others go on."""

    class FailingWorker:
        def __init__(self, name, *_):
            self.name, self.steps = name, 3 if name == 'timm' else 1000

        def request(self, do, **_):
            self.steps -= do == 'run'
            if self.steps < 0:
                raise WorkerError('it ended')
            return {
                'run': dict(seconds=2.0 if self.name == 'ours' else 1.0),
                'memory': dict(bytes=100, how='clear_refs'),
            }.get(do, {})

        def close(self):
            self.steps = None

    monkeypatch.setattr(measurement, 'Worker', FailingWorker)
    monkeypatch.setattr(measurement, 'PAUSE', 0)
    args = parse_args(['--rounds', '5'])
    result = measurement.Measurement(cases_of(args)[0], args).run(['ours', 'timm', 'mmpretrain'])
    assert result['left_out'] == {'timm': 'it ended'}
    assert result['fastest_implementation'] == 'mmpretrain'
    assert result['speed_ratio'] == 0.5
    assert [len(each['seconds']) for each in result['implementations'].values()] == [5, 5]
