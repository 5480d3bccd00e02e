"""A training says after its first batches how long it, its epochs and a validation will take."""

import re

import pytest

from tests.helpers.toy_training import ToyModel, config, run
from tools.engine.duration import DurationHook


@pytest.fixture
def durations(monkeypatch, tmp_path):
    """What a training logs, where the first batch of each kind takes 100 s more than others."""
    now = [0.0]
    forward, seen = ToyModel.forward, set()

    def take_time(model, inputs, data_samples=None, mode='tensor'):
        now[0] += {'loss': 2.0, 'predict': 3.0}[mode] + (0 if mode in seen else 100)
        seen.add(mode)
        return forward(model, inputs, data_samples, mode)

    monkeypatch.setattr(ToyModel, 'forward', take_time)
    monkeypatch.setattr('tools.engine.duration.time.perf_counter', lambda: now[0])

    def train(**kwargs):
        cfg = config(tmp_path, **kwargs)
        cfg.val_dataloader.dataset.length = 40
        return re.findall(r'\d+ s per .*', run(cfg, hooks=[DurationHook()]))

    return train


def test_iterations(durations):
    assert durations(until=200) == [
        '2 s per iteration: the 194 iterations that are left take 0:06:28, validation aside',
        '3 s per batch: a validation of 40 batches takes 0:02:00',
    ]


def test_epochs(durations):
    assert durations(by_epoch=True, until=4)[0] == (
        '2 s per iteration: an epoch of 4 iterations takes 0:00:08, validation aside'
    )


def test_a_validation_is_not_counted_as_training(durations):
    loop = dict(type='IterBasedTrainLoop', max_iters=40, val_interval=4)
    said = durations(until=40, train_cfg=loop)
    assert said == ['3 s per batch: a validation of 40 batches takes 0:02:00']
    loop['val_interval'] = 7
    assert '2 s per iteration: the 34 iterations' in durations(until=40, train_cfg=loop)[0]


def test_nothing_is_said_of_what_has_ended(durations):
    assert [line for line in durations(until=6) if 'iteration' in line] == []
