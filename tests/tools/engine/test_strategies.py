"""Trainings divided among processes equal those in one, and resume in each other's mode."""

import pytest
import torch

from swinv2_backbone.compat import safe_mmengine_globals
from tests.helpers.scaling import SAVED, STEPS, STRATEGIES, start_processes, train


def load(path):
    with safe_mmengine_globals():
        return torch.load(path, weights_only=True)


@pytest.mark.parametrize('count', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_strategies_equal_one_process(tmp_path, count):
    """Losses, weights and checkpoints, whatever the strategy before and after a resume.

    In float64, where only rounding differs: by 1e-16 in a gradient, which Adam, dividing by at
    least its eps of 1e-8, turns into less than 1e-10 of a weight in a few steps of 1e-3.
    """
    alone = train(tmp_path / 'alone', count)
    processes = start_processes(count, 'tests/helpers/train_with_strategies.py', tmp_path)
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    failed = [o[-3000:] for p, o in zip(processes, outputs, strict=True) if p.returncode]
    assert not failed, '\n'.join(failed)
    losses = torch.load(tmp_path / 'losses.pth', weights_only=True)
    for name in STRATEGIES:  # back in one process
        file = tmp_path / name / f'iter_{SAVED}.pth'
        losses[name, 'alone'] = train(tmp_path / f'{name}_alone', count, resume=file)
    for key, got in losses.items():
        assert got == pytest.approx(alone[-len(got) :], abs=1e-10), key
    for key in losses:
        folder = '_'.join(key) if isinstance(key, tuple) else key
        for step in {SAVED, STEPS} if folder == key else {STEPS}:
            expected, got = (load(tmp_path / f / f'iter_{step}.pth') for f in ('alone', folder))
            compare(expected, got, folder)


def compare(expected, got, folder):
    for part in ('state_dict', 'optimizer'):
        torch.testing.assert_close(
            got[part]['state'] if part == 'optimizer' else got[part],
            expected[part]['state'] if part == 'optimizer' else expected[part],
            rtol=0,
            atol=1e-10,
            msg=lambda m, part=part: f'{folder}, {part}: {m}',
        )
    assert got['state_dict']._metadata == expected['state_dict']._metadata
