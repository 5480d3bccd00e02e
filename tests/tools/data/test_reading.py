"""A process of a data loader that dies ends a training in one line that names its file."""

import multiprocessing
import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

for toolbox in ('mmcv', 'mmdet', 'mmseg', 'pycocotools'):
    pytest.importorskip(toolbox)

from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS

from tests.helpers.scripts import error_line
from tools import train
from tools.data.reading import LastRead, explained_data_errors
from tools.utils.errors import UserError

WAYS = {
    'killed': (lambda: os.kill(os.getpid(), signal.SIGKILL), r'was killed by a signal \(Killed\)'),
    'segmentation fault': (lambda: os.kill(os.getpid(), signal.SIGSEGV), 'was killed by a signal'),
    'exits with an error': (lambda: os._exit(3), 'exited unexpectedly with exit code 3'),
    'exits': (lambda: os._exit(0), 'exited unexpectedly'),
}


class Dying(Dataset):
    """Its third sample ends the process that reads it."""

    def __init__(self, die):
        def transform(info):
            if info['img_path'] == '2.png':
                die()
            return torch.zeros(1)

        self.pipeline = Compose([transform])

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.pipeline(dict(img_path=f'{index}.png'))


@pytest.mark.parametrize('way', WAYS)
def test_a_process_that_dies_is_explained(way):
    die, message = WAYS[way]
    with pytest.raises(UserError, match=message) as ended, explained_data_errors():
        list(DataLoader(Dying(die), num_workers=2, multiprocessing_context='fork'))
    assert 'while it read 2.png: is the memory full' in str(ended.value)
    assert '\n' not in str(ended.value)


def test_a_process_that_dies_between_files_is_explained():
    class Idle(Dying):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            if index == 2:
                os._exit(3)
            return sample

    loader = DataLoader(Idle(lambda: None), num_workers=1, multiprocessing_context='fork')
    with pytest.raises(UserError, match=r'after it had read 2\.png'), explained_data_errors():
        list(loader)


def test_a_process_that_dies_ends_training_with_one_line(tasks, tmp_path, capsys):
    @TRANSFORMS.register_module(force=True)
    class Die:
        def __call__(self, results):
            if results['img_path'].endswith('00002.png'):
                os.kill(os.getpid(), signal.SIGKILL)
            return results

    config = tmp_path / 'die.py'
    config.write_text(
        f"_base_ = '{tasks.configs['segmentation']}'\n"
        'pipeline = [*_base_.train_pipeline]\n'
        "pipeline.insert(2, dict(type='mmengine.Die'))\n"
        'train_dataloader = dict(num_workers=1, dataset=dict(pipeline=pipeline))\n'
    )
    line = error_line(capsys, train.main, config, '--work-dir', tmp_path / 'work')
    assert 'was killed by a signal (Killed) while it read' in line
    assert f'{tasks.data}/images/train/00002.png' in line


def test_what_a_dead_process_sent_is_gone_with_it():
    """Which error torch raises then depends on how far it has died."""

    class Iterator:
        def __init__(self):
            self._workers = [multiprocessing.get_context('fork').Process(target=os._exit, args=[3])]
            self._workers[0].start()

        def get(self):
            raise ConnectionResetError

    iterator = Iterator()
    [worker] = iterator._workers
    with (
        pytest.raises(
            UserError, match=f'{worker.pid} exited unexpectedly with exit code 3 before it'
        ),
        explained_data_errors(),
    ):
        iterator.get()
    with pytest.raises(ConnectionResetError), explained_data_errors():
        raise ConnectionResetError


def test_other_errors_of_torch_pass():
    with pytest.raises(RuntimeError, match='shapes'), explained_data_errors():
        raise RuntimeError('shapes')


def test_what_a_process_reads_is_known_to_its_parent():
    last_read = LastRead()
    child = os.fork()
    if not child:
        last_read.note('x' * 5000)
        last_read.note('images/é.png')
        os._exit(0)
    os.waitpid(child, 0)
    assert last_read.of(child) == 'images/é.png'
    assert last_read.all() == ['images/é.png']
    assert last_read.of(child + 512) is None
    assert last_read.of(1) is None
