"""The newest checkpoint of a work dir is found; one training at a time writes, atomically."""

import os
import subprocess
import sys
import time
from multiprocessing import reduction, resource_sharer
from pathlib import Path

import pytest
import torch

from tests.helpers.scripts import ROOT
from tests.helpers.toy_training import ToyData, config, run
from tools.engine.work_dir import AtomicRunner, latest_checkpoint, only_training
from tools.utils.errors import UserError


def save(folder, *names, iterations=0):
    """Write checkpoints, the first of them as the oldest."""
    for second, name in enumerate(names):
        torch.save({'meta': {'iter': iterations}}, folder / name)
        os.utime(folder / name, (second, second))


def test_the_newest_checkpoint_has_the_highest_number(tmp_path, capsys):
    assert latest_checkpoint(tmp_path) is None
    save(tmp_path, 'best_mIoU_iter_30.pth', 'iter_9.pth', 'iter_10.pth', 'iter_last.pth')
    (tmp_path / 'iter_11.pth').write_bytes((tmp_path / 'iter_10.pth').read_bytes()[:100])
    assert latest_checkpoint(tmp_path) == str(tmp_path / 'iter_10.pth')
    assert capsys.readouterr().err == ''


def test_a_copied_work_dir_gives_the_same(tmp_path, capsys):
    """A copy or a download has any times."""
    save(tmp_path, 'iter_20.pth', 'iter_10.pth')
    assert latest_checkpoint(tmp_path) == str(tmp_path / 'iter_20.pth')
    said = capsys.readouterr().err
    assert 'iter_20.pth is the newest checkpoint by its number, though iter_10.pth was' in said


@pytest.mark.parametrize(('iterations', 'newest'), [(30, 'epoch_3.pth'), (10, 'iter_20.pth')])
def test_iterations_decide_between_iter_and_epoch(tmp_path, iterations, newest):
    save(tmp_path, 'epoch_3.pth', iterations=iterations)
    save(tmp_path, 'iter_20.pth', iterations=20)
    save(tmp_path, 'iter_4.pth', iterations=40)  # Only the newest of each kind are read.
    assert latest_checkpoint(tmp_path) == str(tmp_path / newest)


HOLD = """
import sys, time
from tools.engine.work_dir import only_training
with only_training(sys.argv[1], 'none'):
    print('locked', flush=True)
    time.sleep(60)
"""


def test_a_second_training_in_a_work_dir_is_refused(tmp_path, monkeypatch):
    first = subprocess.Popen(
        [sys.executable, '-c', HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == 'locked\n'
        with (
            pytest.raises(
                UserError, match=rf'in use by another training \(process {first.pid} on '
            ),
            only_training(tmp_path, 'none'),
        ):
            pass
        monkeypatch.setenv('RANK', '1')
        with only_training(tmp_path, 'pytorch'):  # Of one job only the first process asks.
            pass
        with pytest.raises(UserError), only_training(tmp_path, 'none'):  # No job: a stray variable.
            pass
    finally:
        first.kill()
        first.wait()
    with only_training(tmp_path, 'none'):
        assert (tmp_path / '.training').read_text().startswith(f'process {os.getpid()} on ')
    with only_training(tmp_path, 'none'):
        pass


def test_an_interrupted_save_leaves_what_was_there(tmp_path, monkeypatch):
    """mmengine writes into the file itself."""

    def save_half(checkpoint, filename, **kwargs):
        with open(filename, 'wb') as file:
            file.write(b'half')
            raise KeyboardInterrupt

    monkeypatch.setattr('mmengine.runner.runner.save_checkpoint', save_half)
    (tmp_path / 'iter_2.pth').write_bytes(b'whole')
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path))
    assert [path.name for path in tmp_path.glob('iter*')] == ['iter_2.pth']
    assert (tmp_path / 'iter_2.pth').read_bytes() == b'whole'


@pytest.mark.parametrize('other', [dict(out_dir='{}/disk'), dict(filename_tmpl='model_{{}}.pth')])
def test_checkpoints_elsewhere_or_of_other_names_are_found(tmp_path, other):
    """A training that resumed from none of them would begin anew, and overwrite them."""
    cfg = config(tmp_path / 'run', until=2)
    cfg.default_hooks.checkpoint.update({k: v.format(tmp_path) for k, v in other.items()})
    run(cfg)
    latest = latest_checkpoint(cfg.work_dir)
    assert latest in {f'{tmp_path}/disk/run/iter_2.pth', f'{tmp_path}/run/model_2.pth'}
    Path(latest).write_bytes(Path(latest).read_bytes()[:1000])
    assert latest_checkpoint(cfg.work_dir) is None


def batches():
    loader = dict(dataset=ToyData(), batch_size=1, num_workers=1, timeout=60)
    loader.update(sampler=dict(type='DefaultSampler', shuffle=False))
    return iter(AtomicRunner.build_dataloader(loader))


def wait_for_output(capfd, seconds):
    """What is written to stderr, after so many seconds or when the first is there."""
    written, end = '', time.time() + seconds
    while not written and time.time() < end:
        time.sleep(0.05)
        written = capfd.readouterr().err
    return written


def test_workers_are_quiet_when_a_training_is_interrupted_as_it_takes_a_batch(capfd, monkeypatch):
    connect = resource_sharer._resource_sharer.get_connection

    def interrupted(ident):
        connect(ident).close()
        raise KeyboardInterrupt

    batch = batches()
    monkeypatch.setattr(resource_sharer._resource_sharer, 'get_connection', interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(batch)
    assert wait_for_output(capfd, 1) == ''


def test_workers_show_why_they_cannot_send_a_batch(capfd, monkeypatch):
    def fail(*args):
        raise OSError('Too many open files')

    monkeypatch.setattr(reduction, 'send_handle', fail)
    batch = batches()  # Kept: its worker ends with it.
    with pytest.raises((EOFError, ConnectionError)):
        next(batch)
    assert 'Too many open files' in wait_for_output(capfd, 60)
