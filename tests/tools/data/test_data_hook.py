"""Batches and settings that end in errors that hide the cause; and label maps as they come."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset, InfiniteSampler
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

for toolbox in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(toolbox)

from tests.helpers.scripts import call, error_line
from tools import test, train
from tools.data import data_hook, file_checks
from tools.data.data_hook import check_batch_norm, check_num_classes
from tools.utils.errors import UserError

# --- batch norm -----------------------------------------------------------------------------------


def head(norm, scale=1, pool=nn.AdaptiveAvgPool2d):
    return nn.ModuleDict(
        {'head': nn.Sequential(pool(scale), nn.Sequential(nn.Conv2d(4, 4, 1), norm))}
    )


def loader(batch_size=1, images=4, **kwargs):
    return DataLoader(range(images), batch_size, **kwargs)


FATAL = {
    'one image': (head(nn.BatchNorm2d(4)), loader(), 1, 'batch_size is 1.*head.1.1 sees'),
    'pair': (head(nn.BatchNorm2d(4), (1, 1)), loader(), 2, 'set train_dataloader.batch_size=2'),
    'maximum': (head(nn.BatchNorm2d(4), 1, nn.AdaptiveMaxPool2d), loader(), 1, 'batch_size is 1'),
    'SyncBN alone': (head(nn.SyncBatchNorm(4)), loader(), 1, 'batch_size is 1'),
    'last batch': (head(nn.BatchNorm2d(4)), loader(2, 5), 1, 'last batch .*drop_last=True'),
}
FINE = {
    'two images': (head(nn.BatchNorm2d(4)), loader(2), 1),
    'SyncBN of two processes': (head(nn.SyncBatchNorm(4)), loader(), 2),
    'statistics in use': (head(nn.BatchNorm2d(4).eval()), loader(), 1),
    'group norm': (head(nn.GroupNorm(2, 4)), loader(), 1),
    'pooled to 2 x 2': (head(nn.BatchNorm2d(4), 2), loader(), 1),
    'before the pooling': (nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)), loader(), 1),
    'no last batch': (head(nn.BatchNorm2d(4)), loader(2, 5, drop_last=True), 1),
    'endless': (head(nn.BatchNorm2d(4)), loader(2, 5, sampler=InfiniteSampler(range(5))), 1),
}


@pytest.mark.parametrize(('model', 'data', 'processes', 'message'), FATAL.values(), ids=FATAL)
def test_batches_that_batch_norm_refuses_are_refused_before(model, data, processes, message):
    with pytest.raises(UserError, match=message):
        check_batch_norm(model, data, processes)


@pytest.mark.parametrize(('model', 'data', 'processes'), FINE.values(), ids=FINE)
def test_batches_that_batch_norm_accepts_are_accepted(model, data, processes):
    check_batch_norm(model, data, processes)


def test_batches_of_unknown_size_are_accepted():
    """A batch sampler need not have a batch_size."""
    model = next(iter(FATAL.values()))[0]
    check_batch_norm(model, DataLoader(range(4), batch_sampler=[[0], [1, 2, 3]]), 1)


def test_the_check_agrees_with_torch():
    """What is refused raises in torch, and what is accepted does not (SyncBN: GPUs alone)."""
    image = torch.rand(1, 4, 6, 6)
    for model, *_ in FATAL.values():
        if isinstance(model['head'][1][1], nn.BatchNorm2d):
            with pytest.raises(ValueError, match='Expected more than 1 value per channel'):
                model['head'](image)
    for name in ('statistics in use', 'group norm', 'pooled to 2 x 2'):
        assert FINE[name][0]['head'](image).isfinite().all()


# --- classes --------------------------------------------------------------------------------------


MODEL = dict(
    type='TTA',
    module=dict(
        rpn_head=dict(num_classes=1),
        roi_head=dict(bbox_head=[dict(num_classes=80), dict(num_classes=3)], semantic_head=dict()),
    ),
)


def test_heads_with_fewer_classes_than_the_data_are_refused():
    with pytest.raises(
        UserError, match=r'roi_head\.bbox_head\.1\.num_classes: got 3; the data set'
    ):
        check_num_classes(ConfigDict(MODEL), 80)
    check_num_classes(ConfigDict(MODEL), 3)
    check_num_classes(ConfigDict(MODEL), 0)  # A data set without names of classes.


def test_a_detector_with_more_classes_than_the_data_is_refused(tasks, tmp_path, capsys):
    """CocoMetric would fail on the first prediction of such a class, after a training."""
    options = [f'model.roi_head.{name}_head.num_classes=7' for name in ('bbox', 'mask')]
    line = error_line(
        capsys,
        train.main,
        tasks.configs['detection'],
        *('--work-dir', tmp_path, '--cfg-options', *options),
    )
    assert 'model.roi_head.bbox_head.num_classes: got 7; the data set has 4 classes' in line


# --- label maps as they come ----------------------------------------------------------------------


@pytest.fixture
def late(tasks, tmp_path, monkeypatch):
    """A copy of the data in which one file is bad; the files read before a run are others."""
    monkeypatch.setattr(file_checks, 'NUM_FILES', 1)
    shutil.copytree(tasks.data, tmp_path / 'shapes')

    def arguments(change, split='train', **options):
        path = tmp_path / f'shapes/semseg/{split}/00002.png'
        Image.fromarray(change(np.array(Image.open(path)))).save(path)
        options = {'dataset.data_root': tmp_path / 'shapes', **options}
        texts = [f'{key}={value}' for key, value in options.items()]
        return path, ['--work-dir', tmp_path / 'work', '--cfg-options', *texts]

    return arguments


def out_of_range(labels):
    return labels + np.uint8(9)


def enlarged(labels):
    return np.pad(labels, ((0, 8), (0, 0)))


def test_a_bad_value_in_a_batch_ends_training_with_one_line(tasks, late, capsys):
    path, options = late(out_of_range)
    line = error_line(capsys, train.main, tasks.configs['segmentation'], *options)
    assert f"label map '{path}' has the value" in line


def test_another_size_than_the_image_ends_training_with_one_line(tasks, late, tmp_path, capsys):
    """Although all crops have the same size."""
    config = tmp_path / 'crop.py'
    config.write_text(
        f"_base_ = '{tasks.configs['segmentation']}'\n"
        'pipeline = [*_base_.train_pipeline]\n'
        "pipeline[2] = dict(type='RandomCrop', crop_size=(32, 32))\n"
        'train_dataloader = dict(dataset=dict(pipeline=pipeline))\n'
    )
    path, options = late(enlarged)
    line = error_line(capsys, train.main, config, *options)
    assert f"label map '{path}' has 64 x 72 pixels, its image 64 x 64 pixels" in line


@pytest.mark.parametrize('change', [out_of_range, enlarged])
def test_bad_label_maps_end_a_test_with_one_line(tasks, late, capsys, change):
    path, options = late(change, 'val')
    arguments = tasks.configs['segmentation'], tasks.checkpoints['segmentation'], *options
    assert f"label map '{path}' has " in error_line(capsys, test.main, *arguments)


def test_heads_of_panoptic_models_have_the_things_alone(monkeypatch):
    monkeypatch.setattr(data_hook, 'check_files', lambda *args: None)
    names = [str(number) for number in range(133)]
    dataset = BaseDataset(metainfo=dict(classes=names, thing_classes=names[:80]), lazy_init=True)
    model = dict(roi_head=dict(bbox_head=dict(num_classes=80)))
    cfg = ConfigDict(model=model, default_scope='mmdet')
    runner, loader = SimpleNamespace(cfg=cfg), SimpleNamespace(dataset=dataset)
    data_hook.DataHook()._check(runner, loader)
    cfg.model.roi_head.bbox_head.num_classes = 133
    with pytest.raises(UserError, match='got 133; the data set has 80 classes'):
        data_hook.DataHook()._check(runner, loader)


def test_heads_whose_number_is_no_count_of_classes_pass():
    """GroundingDINO's is the length of a text."""
    check_num_classes(ConfigDict(bbox_head=dict(num_classes=256)), 80, exact=True)


def test_samples_need_no_more_keys_than_mmseg_asks_for(tasks, tmp_path):
    """A pipeline of one's own may pack neither the path of a label map nor the image's size."""
    config = tmp_path / 'keys.py'
    config.write_text(
        f"_base_ = '{tasks.configs['segmentation']}'\n"
        "pack = dict(type='PackSegInputs', meta_keys=('img_shape',))\n"
        "pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), pack]\n"
        'train_dataloader = dict(dataset=dict(pipeline=pipeline))\n'
        'train_cfg = dict(max_iters=1)\n'
        'val_dataloader = val_cfg = val_evaluator = None\n'
    )
    call(train.main, config, '--work-dir', tmp_path / 'work')
    assert (tmp_path / 'work/iter_1.pth').is_file()


def test_a_file_that_a_worker_cannot_read_ends_training_with_one_line(tasks, late, capsys):
    path, options = late(enlarged, **{'train_dataloader.num_workers': 1})
    path.write_bytes(path.read_bytes()[:60])
    line = error_line(capsys, train.main, tasks.configs['segmentation'], *options)
    assert f"'{path}' cannot be read: OSError" in line
