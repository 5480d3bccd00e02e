"""Misspelled keys and missing data are refused; overrides that something reads are accepted."""

from pathlib import Path

import pytest
from mmengine.config import Config

from tests.helpers.scripts import ROOT
from tools.engine.config_checks import check_data, check_override, check_top_level
from tools.utils.errors import UserError

CONFIGS = {
    'segmentation': ROOT / 'configs/segmentation/upernet_swinv2_tiny_shapes.py',
    'detection': ROOT / 'configs/detection/mask_rcnn_swinv2_tiny_shapes.py',
}


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        ('trian_cfg.max_iters', "unknown key 'trian_cfg' (did you mean 'train_cfg'?)"),
        ('nonsense', "'nonsense': unknown key 'nonsense'"),
        ('train_dataloader.batch_siz', "unknown key 'batch_siz' (did you mean 'batch_size'?)"),
        ('model.backbone.drop_path_rat', "(did you mean 'drop_path_rate'?)"),
        ('param_scheduler.7.end', "'param_scheduler' is a list of 2; '7' is no index of it"),
        ('train_cfg.max_iters.x', "'train_cfg.max_iters' is no dict but "),
    ],
)
def test_overrides_that_nothing_reads_are_refused(key, message):
    with pytest.raises(UserError) as caught:
        check_override(Config.fromfile(CONFIGS['segmentation']), key)
    assert message in str(caught.value)


@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    'key',
    [
        'randomness.seed',
        'find_unused_parameters',
        'sync_bn',
        'model_wrapper_cfg.type',
        'compile',
        'optim_wrapper.clip_grad.max_norm',
        'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult',
        'optim_wrapper.paramwise_cfg.flat_decay_mult',
        'optim_wrapper.dtype',
        'optim_wrapper.accumulative_counts',
        'work_dir',
        'default_hooks.early_stopping.type',
        'train_cfg.dynamic_intervals',
        'param_scheduler.1.end',
        'model.backbone.with_cp',
        'model.backbone.attn_drop_rate',
        'train_dataloader.dataset.indices',
        'train_dataloader.drop_last',
        'train_dataloader.num_batch_per_epoch',
        'default_hooks.checkpoint.save_last',
        'visualizer.vis_backends.0.save_dir',
    ],
)
def test_overrides_that_are_read_are_accepted(config, key):
    check_override(Config.fromfile(config), key)


def test_misspelled_top_level_key_is_refused():
    with pytest.raises(UserError, match=r"'x.py': unknown key 'param_schedulr' \(did you mean"):
        check_top_level(Config(dict(param_schedulr=[])), Path('x.py'))


def test_variables_of_the_author_are_accepted():
    variables = dict(models=[], train_pipeline=[], tta_pipeline=[], data_root='x', crop_size=64)
    check_top_level(Config(variables), Path('x.py'))


def check(dataset):
    check_data(Config(dict(test_dataloader=dict(dataset=dataset))), 'test_dataloader')


@pytest.mark.parametrize(
    ('dataset', 'missing'),
    [
        (dict(data_root='{here}/nowhere'), '{here}/nowhere'),
        (dict(data_root='{here}', ann_file='a.json'), '{here}/a.json'),
        (dict(data_root='{here}', data_prefix=dict(img='there', seg='gone')), '{here}/gone'),
        (dict(ann_file='{here}/a.json'), '{here}/a.json'),
        (dict(type='RepeatDataset', dataset=dict(data_root='{here}/a')), '{here}/a'),
        (dict(datasets=[dict(data_root='{here}'), dict(data_root='{here}/b')]), '{here}/b'),
    ],
)
def test_missing_data_is_named(tmp_path, dataset, missing):
    (tmp_path / 'there').mkdir()

    def here(value):
        if isinstance(value, dict):
            return {key: here(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [here(inner) for inner in value]
        return value.format(here=tmp_path)

    with pytest.raises(UserError, match='set its data_root') as caught:
        check(here(dataset))
    assert f"data '{missing.format(here=tmp_path)}' not found (test_d" in str(caught.value)


def test_missing_shapes_name_the_command_that_makes_them():
    with pytest.raises(UserError, match='run `make data/shapes`'):
        check(dict(data_root='nowhere/shapes'))


@pytest.mark.parametrize(
    'dataset', [dict(data_root='s3://bucket', ann_file='a.json'), dict(ann_file='s3://bucket/a')]
)
def test_remote_data_is_left_to_mmengine(dataset):
    assert check(dataset) is None


def test_config_without_the_loader():
    with pytest.raises(UserError, match='the config lacks val_dataloader'):
        check_data(Config(dict()), 'val_dataloader')
