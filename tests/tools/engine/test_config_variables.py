"""An override of a config's variable changes all that was made from it, or is refused."""

import argparse

import pytest

from tests.helpers.scripts import ROOT
from tools.engine.runner import load_config
from tools.utils.errors import UserError

UPERNET = 'segmentation/upernet_swinv2_tiny_{}.py'
MASK_RCNN = 'detection/mask_rcnn_swinv2_tiny_{}.py'
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
BASE = """
default_scope = 'mmseg'
data_root = 'data/base'
size = 8
if size > 4:
    pipeline = [dict(type='Resize', scale=size)]
    scales = [size // scale for scale in (1, 2)]
model = dict(type='Model', norm=dict(scales=scales))
train_dataloader = dict(batch_size=2, dataset=dict(data_root=data_root, pipeline=pipeline))
val_evaluator = dict(ann_file=data_root + '/val.json')
"""
CHILD = """
_base_ = './base.py'
data_root = 'data/child'  # mmengine reads it nowhere
pipeline = [*_base_.pipeline]
pipeline.append(dict(type='Crop', side={{_base_.size}}))
pipeline[1] = dict(type='Crop', side=3)
train_dataloader = dict(dataset=dict(pipeline=pipeline))
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    monkeypatch.setenv('LOCAL_RANK', '0')


def load(path, **overrides):
    options = {key.replace('__', '.'): value for key, value in overrides.items()}
    return load_config(
        argparse.Namespace(
            config=str(path), cfg_options=options, launcher='none', work_dir=None, local_rank=0
        )
    )


@pytest.fixture
def own(tmp_path):
    """The path of a config of a user's own, with a base."""
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'child.py').write_text(CHILD)
    return tmp_path / 'child.py'


@pytest.mark.parametrize(
    'config',
    [
        *(UPERNET.format(name) for name in ('shapes', 'nuclei', 'ade20k', 'w16_ade20k')),
        *(UPERNET.format(name) for name in ('w16_640_ade20k', 'cityscapes')),
        *(MASK_RCNN.format(name) for name in ('shapes', 'nuclei', 'coco', 'w16_3x_coco')),
        'detection/retinanet_swinv2_base_coco.py',
        'detection/dino_swinv2_tiny_coco.py',
        'detection/mask2former_swinv2_tiny_coco.py',
        'segmentation/mask2former_swinv2_tiny_ade20k.py',
    ],
)
def test_one_override_moves_the_data_of_our_configs(config):
    cfg = load(ROOT / 'configs' / config, data_root='/moved')
    assert [cfg[loader].dataset.data_root for loader in LOADERS] == ['/moved'] * 3
    old = load(ROOT / 'configs' / config).data_root
    assert old not in cfg.pretty_text, 'what is dumped has the new one, too'
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.get('ann_file', '/moved').startswith('/moved')


@pytest.mark.parametrize('name', ['640_ade20k', 'w16_640_ade20k', 'cityscapes'])
def test_one_override_changes_the_crops_and_what_they_are_padded_to(name):
    cfg = load(ROOT / 'configs' / UPERNET.format(name), crop_size=(64, 128))
    (crop,) = (s for s in cfg.train_dataloader.dataset.pipeline if s.type == 'RandomCrop')
    assert crop.crop_size == cfg.model.data_preprocessor.size == (64, 128)
    if name == 'cityscapes':
        assert cfg.model.test_cfg.crop_size == (64, 128)
        assert cfg.model.test_cfg.stride == (48, 96)


def test_one_override_changes_the_images_of_large_scale_jittering():
    path = ROOT / 'configs/detection/mask2former_swinv2_tiny_coco.py'
    cfg = load(path, image_size=(64, 64))
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert steps['RandomResize'].scale == steps['RandomCrop'].crop_size == (64, 64)
    assert cfg.model.data_preprocessor.batch_augments[0].size == (64, 64)


def test_a_part_of_a_variable():
    cfg = load(ROOT / 'configs' / UPERNET.format('nuclei'), train_pipeline__2__crop_size=(64, 64))
    step = dict(type='RandomCrop', crop_size=(64, 64), cat_max_ratio=0.95)
    assert cfg.train_dataloader.dataset.pipeline[2] == cfg.train_pipeline[2] == step


def test_a_variable_of_several_settings():
    cfg = load(ROOT / 'configs' / UPERNET.format('shapes'), max_iters=70, norm_cfg__type='GN')
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (70, 70)
    assert cfg.param_scheduler[1].end == 70
    heads = (cfg.model.decode_head, cfg.model.auxiliary_head)
    assert [head.norm_cfg.type for head in heads] == ['GN', 'GN']


def test_settings_of_ones_own_config_and_its_base(own):
    cfg = load(own, data_root='/moved', size=16)
    assert cfg.train_dataloader.dataset.data_root == cfg.data_root == '/moved'
    assert cfg.val_evaluator.ann_file == '/moved/val.json'
    assert cfg.model.norm.scales == [16, 8]
    assert cfg.train_dataloader.dataset.pipeline[0].scale == 16
    assert 'scale' not in cfg, 'the name of a loop is no variable'


def test_a_part_that_only_the_child_has(own):
    cfg = load(own, pipeline__1__side=5)
    assert cfg.train_dataloader.dataset.pipeline[1] == dict(type='Crop', side=5)
    assert cfg.train_dataloader.dataset.pipeline[0] == dict(type='Resize', scale=8)


def test_what_is_read_wins_over_a_variable(own):
    options = dict(data_root='/moved', train_dataloader__dataset__data_root='/there')
    cfg = load(own, **options)
    assert cfg.train_dataloader.dataset.data_root == '/there'
    assert cfg.val_evaluator.ann_file == '/moved/val.json'


def test_the_same_value_is_no_mistake(own):
    assert load(own, size=8).to_dict() == load(own).to_dict()


@pytest.mark.parametrize(
    ('text', 'override', 'message'),
    [
        (
            "data_root = 'x/'\nval_dataloader = dict(dataset=dict(data_root='x/', ann='x/y'))",
            dict(data_root='z'),
            "'data_root' is a variable of the config, and nothing that is read depends on it; "
            'the same value is read from val_dataloader.dataset.data_root',
        ),
        (
            "folder = 'x'\nval_evaluator = dict(ann_file='x/y.json', prefix='xy')",
            dict(folder='z'),
            'depends on it; the same value is read from val_evaluator.ann_file',
        ),
        ('unused = dict(side=3)', dict(unused__side=4), "'unused.side' is a variable of the conf"),
        ('folder = 3\nlog_level = str(folder)', dict(folder__x=4), "'folder' is no dict but 3"),
    ],
)
def test_a_variable_that_nothing_depends_on_is_refused(tmp_path, text, override, message):
    (tmp_path / 'x.py').write_text(f"default_scope = 'mmseg'\n{text}\n")
    with pytest.raises(UserError) as caught:
        load(tmp_path / 'x.py', **override)
    assert message in str(caught.value)


def test_a_folder_that_is_replaced_in_part_is_refused():
    path, moved = ROOT / 'configs' / MASK_RCNN.format('nuclei'), dict(dataset__data_root='/moved')
    left = 'val_evaluator.ann_file, test_evaluator.ann_file'
    with pytest.raises(UserError, match=f"'data/nuclei', which is still read from {left}: set"):
        load(path, **moved)
    files = dict(val_evaluator__ann_file='/v.json', test_evaluator__ann_file='/t.json')
    cfg = load(path, **moved, **files)
    assert cfg.train_dataloader.dataset.data_root == '/moved'
    assert cfg.val_evaluator.ann_file == '/v.json'


def test_a_config_that_fails_with_the_value_is_refused(own):
    with pytest.raises(UserError, match="'data_root': with 3: TypeError: unsupported operand"):
        load(own, data_root=3)


def test_configs_that_are_no_programs_are_refused(tmp_path):
    (tmp_path / 'x.yaml').write_text('default_scope: mmseg\nroot: a\ntrain_cfg: {type: a}')
    with pytest.raises(UserError, match=r'the same value is read from train_cfg\.type'):
        load(tmp_path / 'x.yaml', root='b')
