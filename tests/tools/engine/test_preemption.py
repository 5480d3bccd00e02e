"""On SIGTERM or SIGUSR1 a training saves, ends with code 75, and later goes on exactly."""

import os
import signal
import socket

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.hooks import Hook

from tests.helpers.random_training import config, outcome
from tests.helpers.toy_training import run
from tools.engine.launching import end_communication
from tools.engine.preemption import EXIT_CODE, PreemptionHook
from tools.engine.work_dir import latest_checkpoint

SEED = dict(randomness=dict(seed=3))
RARELY = dict(default_hooks=dict(checkpoint=dict(interval=100)))
BY_EPOCH = dict(default_hooks=dict(checkpoint=dict(by_epoch=True, interval=1)))
VALIDATION = dict(train_cfg=dict(val_interval=3))
EMA = dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)])


class Signal(Hook):
    """Sends a signal to this process in an iteration, or in the validation that follows it."""

    def __init__(self, number, iteration, validation=False):
        self.number, self.iteration, self.validation = number, iteration, validation

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration and not self.validation:
            os.kill(os.getpid(), self.number)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration and self.validation:
            os.kill(os.getpid(), self.number)


def preempted(cfg, number, iteration, validation=False):
    """Run a training that gets a signal, which must end it."""
    with PreemptionHook().listening() as hook:
        hooks = [Signal(number, iteration, validation), hook]
        with pytest.raises(SystemExit) as ended:
            run(cfg, hooks=hooks)
    assert ended.value.code == EXIT_CODE == 75


@pytest.mark.parametrize(
    ('by_epoch', 'at', 'saved', 'changes'),
    [
        (False, 4, 4, RARELY),
        (False, 4, 4, {}),
        (True, 7, 7, BY_EPOCH),
        (True, 5, 5, BY_EPOCH),
        (False, 3, 4, RARELY | dict(optim_wrapper=dict(accumulative_counts=2))),
    ],
    ids=['between checkpoints', 'at a checkpoint', 'within an epoch', 'at its end', 'accumulation'],
)
def test_preempted_training_goes_on(tmp_path, capsys, by_epoch, at, saved, changes):
    until, name = (3, 'epoch_3.pth') if by_epoch else (8, 'iter_8.pth')
    whole, parts = (
        config(tmp_path / each, by_epoch, until, **SEED, **changes) for each in ('whole', 'parts')
    )
    run(whole)
    preempted(parts.copy(), signal.SIGUSR1, at)
    path = tmp_path / f'parts/iter_{saved}.pth'
    line = (
        f'train.py: preempted (SIGUSR1) after iteration {saved}; {path} is saved. To go on: --res'
    )
    assert line in capsys.readouterr().err
    assert latest_checkpoint(parts.work_dir) == str(path)
    run(parts, path)
    assert outcome(tmp_path / 'parts' / name) == outcome(tmp_path / 'whole' / name)
    assert path.exists() != by_epoch, 'in the middle of an epoch it is for once'


@pytest.mark.parametrize('changes', [{}, RARELY], ids=['saved before', 'not saved before'])
def test_a_validation_ends_at_once_and_is_repeated(tmp_path, changes):
    """The averaged weights, which are in the model meanwhile, are no weights to go on from."""
    whole, parts = (
        config(tmp_path / each, **SEED, **VALIDATION, **EMA, **changes)
        for each in ('whole', 'parts')
    )
    run(whole)
    preempted(parts.copy(), signal.SIGTERM, 6, validation=True)
    assert latest_checkpoint(parts.work_dir) == str(tmp_path / 'parts/iter_6.pth')
    log = run(parts, tmp_path / 'parts/iter_6.pth')
    assert outcome(tmp_path / 'parts/iter_8.pth') == outcome(tmp_path / 'whole/iter_8.pth')
    validations = [line for line in log.splitlines() if '(val)' in line]
    assert len(validations) == 2, 'after iterations 6 and 8'


@pytest.mark.parametrize('when', ['train', 'val'])
def test_signals_to_the_group_do_not_reach_the_workers(tmp_path, when):
    """`timeout` and `kill -- -GROUP` send them; a validation that loses its workers fails."""
    groups = []

    class Note(Hook):
        def note(self, *args, **kwargs):
            groups.extend(os.getpgid(worker.pid) for worker in mp.active_children())

    setattr(Note, f'after_{when}_iter', Note.note)
    run(config(tmp_path, until=2, **{f'{when}_dataloader': dict(num_workers=1)}), hooks=[Note()])
    assert groups
    assert os.getpgrp() not in groups


def test_the_last_validation_is_repeated(tmp_path):
    cfg = config(tmp_path)
    preempted(cfg.copy(), signal.SIGTERM, 8, validation=True)
    assert not list(tmp_path.glob('best*'))
    run(cfg.copy(), tmp_path / 'iter_8.pth')
    assert (tmp_path / 'best_acc_iter_8.pth').exists()


def test_before_the_training_a_signal_ends_it_at_once(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, PreemptionHook().listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == EXIT_CODE
    assert 'preempted (SIGTERM) before the first iteration' in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_slurm_is_told_to_requeue_the_job(tmp_path, monkeypatch):
    """Once: by the first process."""
    stub = tmp_path / 'scontrol'
    stub.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n')
    stub.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv('SWINV2_REQUEUE', '77')
    for rank in ('0', '1'):
        monkeypatch.setenv('SLURM_PROCID', rank)
        with pytest.raises(SystemExit), PreemptionHook().listening():
            os.kill(os.getpid(), signal.SIGUSR1)
    assert (tmp_path / 'called').read_text() == 'requeue 77\n'


def _one_of_two(rank, port, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.distributed.init_process_group('gloo')
    cfg = config(folder, **SEED, **RARELY)
    cfg.launcher = 'pytorch'
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
    latest = latest_checkpoint(folder)
    with PreemptionHook().listening() as hook:
        signals = [Signal(signal.SIGUSR1, 4)] if rank == 1 and latest is None else []
        run(cfg, latest, hooks=[*signals, hook])
    end_communication()


def spawn(folder):
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    processes = [
        mp.get_context('spawn').Process(target=_one_of_two, args=(rank, port, str(folder)))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@pytest.mark.slow
def test_of_two_processes_both_end_if_one_has_the_signal(tmp_path):
    assert spawn(tmp_path / 'parts') == [EXIT_CODE] * 2
    assert latest_checkpoint(tmp_path / 'parts') == str(tmp_path / 'parts/iter_4.pth')
    assert spawn(tmp_path / 'parts') == [0, 0]
    cfg = config(tmp_path / 'one', until=10)
    log = run(cfg, tmp_path / 'parts/iter_8.pth')
    assert 'the checkpoint was saved with processes 2 (now: 1): this is not exactly' in log
