"""Distributed jobs without an accelerator, and what is left of them when a process is lost."""

import signal

import pytest

from tests.helpers.scaling import start_processes
from tools.engine.launching import check_launcher
from tools.utils.errors import UserError


@pytest.mark.parametrize(
    ('lost', 'how'),
    [(1, 'SIGKILL'), (1, 'SIGSTOP'), pytest.param(0, 'SIGKILL', marks=pytest.mark.slow)],
)
def test_a_lost_process_is_named(tmp_path, lost, how):
    """With a time-out of 5 s all others end, and say which process was killed or hangs."""
    number = signal.Signals[how].value
    count = 3 if how == 'SIGSTOP' else 2
    arguments = 'tests/helpers/lose_a_process.py', tmp_path, lost, number
    processes = start_processes(count, *arguments)
    try:
        for rank, process in enumerate(processes):
            if rank != lost:
                output = process.communicate(timeout=65 + 60)[0]
                last = output.strip().splitlines()[-1]
                expected = f'error: rank {rank}: lost rank {lost} of {count}, which was killed'
                assert expected in last, output[-3000:]
                assert process.returncode == 1
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(('launcher', 'variable'), [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID')])
def test_a_launcher_that_did_not_launch(monkeypatch, launcher, variable):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=f'--launcher {launcher}: {variable} is not set'):
        check_launcher(launcher)
    check_launcher('none')
