"""Checks of all files in several processes, and of data sets of no known format."""

import os
import pickle
from pathlib import Path

import pytest
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image

for toolbox in ('mmcv', 'mmdet', 'mmseg', 'pycocotools'):
    pytest.importorskip(toolbox)

from mmcv.transforms import LoadImageFromFile

from tests.tools.data import small_data
from tools.data import whole_check
from tools.data.file_checks import FileChecker
from tools.data.whole_check import check_data_set
from tools.utils.errors import UserError


@DATASETS.register_module()
class Classified(BaseDataset):
    """Images with a class, as those of mmpretrain; the last has a class that there is not."""

    def load_data_list(self):
        paths = sorted(Path(self.data_root).iterdir())
        return [dict(img_path=str(path), gt_label=index) for index, path in enumerate(paths)]


@pytest.fixture
def classified(tmp_path):
    for index in range(3):
        Image.new('RGB', (9, 9)).save(tmp_path / f'{index}.png')
    pipeline = [dict(type='mmcv.LoadImageFromFile')]
    return ConfigDict(
        type='mmengine.Classified',
        data_root=str(tmp_path),
        metainfo=dict(classes=('a', 'b')),
        pipeline=pipeline,
    )


def test_a_class_out_of_range(classified):
    [fault] = check_data_set(classified, 'mmpretrain', 'x', 2).faults
    assert fault.is_error
    assert "2.png' has the class 2, allowed: 0 to 1" in fault.message


@pytest.mark.parametrize('workers', [1, 3])
def test_the_number_of_processes_changes_nothing(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(whole_check, '_CHUNK', 1)
    small_data.make_coco(tmp_path)
    for index in (1, 3, 4):
        (tmp_path / f'images/{index}.jpg').write_bytes(b'x')
    settings = ConfigDict(small_data.coco_settings(tmp_path))
    checkup = check_data_set(settings, 'mmdet', 'x', workers)
    assert [fault.message.split('/')[-1][:5] for fault in checkup.faults] == [
        f'{index}.jpg' for index in (1, 3, 4)
    ]
    assert checkup.num_images == small_data.NUM_IMAGES


def test_a_process_that_dies_is_explained(classified, monkeypatch):
    monkeypatch.setattr(LoadImageFromFile, 'transform', lambda self, results: os._exit(3))
    with pytest.raises(UserError, match=r"a process died while it read one of '.*/0\.png': is"):
        check_data_set(classified, 'mmpretrain', 'x', 1)


def test_a_checker_can_be_sent_to_a_process_that_is_not_forked(tmp_path):
    small_data.make_semantic(tmp_path)
    dataset = DATASETS.build(dict(small_data.semantic_settings(tmp_path), _scope_='mmseg'))
    checker = pickle.loads(pickle.dumps(FileChecker(dataset, 'mmseg')))
    assert checker(dataset.get_data_info(0)).labels == {0, 1, 2, 3, 255}
