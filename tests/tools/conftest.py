"""Small data, configs and checkpoints for the scripts that train and test."""

from types import SimpleNamespace

import pytest
import torch

from tests.helpers.models import randomize_parameters
from tests.helpers.scripts import ROOT, call

_CONFIGS = {
    'segmentation': ROOT / 'configs/segmentation/upernet_swinv2_tiny_shapes.py',
    'detection': ROOT / 'configs/detection/mask_rcnn_swinv2_tiny_shapes.py',
}
_CHANGES = """
_base_ = '{base}'
dataset = dict(data_root='{data}')
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dataset)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=6, val_interval=6)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
arch = dict(_delete_=True, embed_dims=16, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8))
channels = [16, 32, 64, 128]
"""
_MODELS = {
    'segmentation': """
model = dict(data_preprocessor=dict(size=(64, 64)), backbone=dict(arch=arch),
             decode_head=dict(in_channels=channels, channels=16),
             auxiliary_head=dict(in_channels=64, channels=16))
train_pipeline = [
    dict(step, crop_size=(64, 64)) if step['type'] == 'RandomCrop' else step
    for step in _base_.train_pipeline]
train_dataloader['dataset'] = dict(dataset, pipeline=train_pipeline)
""",
    'detection': """
model = dict(
    backbone=dict(arch=arch),
    neck=dict(in_channels=channels, out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16)),
    train_cfg=dict(rpn_proposal=dict(max_per_img=50), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(max_per_img=5)))
val_evaluator = dict(ann_file='{data}/annotations/instances_val.json')
test_evaluator = val_evaluator
""",
}


@pytest.fixture(scope='session')
def tasks(tmp_path_factory):
    """A folder with a small data set, and for each task a quick config and a random checkpoint.

    Attributes:
        data: The folder of the data set, `shapes`.
        configs: The config file by task, 'segmentation' or 'detection'.
        checkpoints: The checkpoint by task.
        other_classes: A checkpoint of the segmentor with another number of classes.
        weights: A checkpoint that fits no model.
        text: A text file with the name of a checkpoint.
    """
    for toolbox in ('mmcv', 'mmdet', 'mmseg', 'pycocotools'):
        pytest.importorskip(toolbox)
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    from tools.dataset_converters.make_shapes import make_shapes

    def save(cfg, name):
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        randomize_parameters(model.backbone)
        torch.save({'state_dict': model.state_dict()}, folder / name)
        return folder / name

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('small')
    made = SimpleNamespace(data=folder / 'shapes', configs={}, checkpoints={})
    make_shapes(made.data, train=8, val=3, size=64, seed=0)
    for task, base in _CONFIGS.items():
        made.configs[task] = folder / f'{task}.py'
        text = (_CHANGES + _MODELS[task]).format(base=base, data=made.data)
        made.configs[task].write_text(text)
        made.checkpoints[task] = save(Config.fromfile(made.configs[task]), f'{task}.pth')
    cfg = Config.fromfile(made.configs['segmentation'])
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.num_classes = 4
    made.other_classes = save(cfg, 'other_classes.pth')
    made.weights, made.text = folder / 'weights.pth', folder / 'text.pth'
    torch.save({'state_dict': {'x': torch.ones(1)}}, made.weights)
    made.text.write_text('no checkpoint')
    return made


@pytest.fixture(scope='session')
def work_dirs(tasks, tmp_path_factory):
    """A folder like `work_dirs`: a segmentor's and a detector's, made by tools/train.py.

    The models are small and have learned next to nothing.
    """
    from tools import train

    folder = tmp_path_factory.mktemp('trained') / 'work_dirs'
    for task, config in tasks.configs.items():
        options = '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2'
        call(train.main, config, '--work-dir', folder / f'{task}_shapes', *options)
        for best in folder.glob('*/best_*.pth'):
            best.unlink()
    return folder
