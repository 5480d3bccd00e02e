"""There is always a whole checkpoint, also if the disk is full."""

import os
import subprocess
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.runner import checkpoint

from tests.helpers import random_training, toy_training
from tests.helpers.random_training import outcome
from tests.helpers.toy_training import run
from tools.engine.work_dir import only_training
from tools.utils.errors import UserError

SEED = dict(randomness=dict(seed=3))


@pytest.fixture
def disk(tmp_path):
    """A file system of 16 MB, which has room for several checkpoints."""
    path = tmp_path / 'disk'
    path.mkdir()
    mount = 'mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', path
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('only root can mount a small file system')
    yield path
    subprocess.run(['umount', '--lazy', path], check=True)  # The log is open.


class Fill(Hook):
    """Fills a disk but for less than a checkpoint, and makes room again, after some iterations."""

    priority = 'HIGHEST'

    def __init__(self, disk, full, empty):
        self.file, self.full, self.empty = disk / 'filling', full, empty

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.full:
            left = os.statvfs(self.file.parent)
            self.file.write_bytes(bytes(left.f_bavail * left.f_bsize - 100_000))
        if runner.iter + 1 == self.empty:
            self.file.unlink()


def config(work_dir, **checkpoint):
    checkpoint = dict(interval=2, max_keep_ckpts=2) | checkpoint
    return random_training.config(work_dir, default_hooks=dict(checkpoint=checkpoint), **SEED)


def names(folder):
    return sorted(path.name for path in folder.glob('*.p*') if path.suffix != '.py')


def test_on_a_full_disk_the_training_goes_on(disk, tmp_path):
    """Two saves fail; mmengine would have deleted both checkpoints before it tried."""
    run(config(tmp_path / 'other'))
    log = run(config(disk / 'work'), hooks=[Fill(disk, full=3, empty=7)])
    assert log.count('could not be saved: No space left on device; earlier checkpoints are') == 2
    assert 'iter_4.pth could not' in log
    assert names(disk / 'work') == ['best_acc_iter_8.pth', 'iter_2.pth', 'iter_8.pth']
    assert outcome(disk / 'work/iter_8.pth') == outcome(tmp_path / 'other/iter_8.pth')


def test_on_a_full_disk_the_training_stops_if_so_configured(disk):
    with pytest.raises(
        UserError, match=r'iter_6.pth could not be saved: No space left .* --resume'
    ):
        run(config(disk / 'work', on_error='stop'), hooks=[Fill(disk, full=5, empty=0)])
    assert names(disk / 'work') == ['iter_2.pth', 'iter_4.pth']
    assert (disk / 'work/last_checkpoint').read_text() == str(disk / 'work/iter_4.pth')
    (disk / 'filling').unlink()
    run(config(disk / 'work', on_error='stop'), disk / 'work/iter_4.pth')
    assert names(disk / 'work') == ['best_acc_iter_8.pth', 'iter_6.pth', 'iter_8.pth']


def test_a_best_checkpoint_stays_until_there_is_a_better_one(tmp_path, monkeypatch):
    """mmengine deletes it before it writes the next."""
    cfg = toy_training.config(tmp_path, until=4)
    run(cfg.copy())
    assert 'best_acc_iter_4.pth' in names(tmp_path)

    save = checkpoint.save_checkpoint

    def save_unless_best(state, filename, **kwargs):
        if Path(filename).name.startswith('best'):
            raise OSError(28, 'No space left on device')
        save(state, filename, **kwargs)

    monkeypatch.setattr('mmengine.runner.runner.save_checkpoint', save_unless_best)
    log = run(toy_training.config(tmp_path, until=6, score=0.9), tmp_path / 'iter_4.pth')
    assert 'the best checkpoint could not be saved: No space left on device' in log
    assert names(tmp_path) == ['best_acc_iter_4.pth', 'iter_4.pth', 'iter_6.pth']


def test_a_wrong_setting_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"on_error: got 'ignore', allowed: 'continue' or 'stop'"):
        run(config(tmp_path, on_error='ignore'))


def test_what_a_killed_save_left_is_removed(tmp_path):
    (tmp_path / 'iter_2.pthx1.partial').touch()
    (tmp_path / 'results.jsonx1.partial').touch()  # Of another tool, which may run now.
    with only_training(tmp_path, 'none'):
        assert names(tmp_path) == ['results.jsonx1.partial']
