"""The scripts end to end: train, kill, resume, test, draw; and their complaints, each one line."""

import argparse
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as REGISTRY
from mmengine.registry import DefaultScope

from tests.helpers.models import randomize_parameters

for toolbox in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(toolbox)

from swinv2_backbone.checkpoints.loading import open_checkpoint
from tools import test, train
from tools.analysis_tools import side_by_side
from tools.dataset_converters.make_shapes import make_shapes
from tools.utils import cli
from tools.utils.config_checks import check_override
from tools.utils.majority_baseline import majority_baseline

ROOT = Path(__file__).parents[2]
CONFIGS = {
    'segmentation': ROOT / 'configs/segmentation/upernet_swinv2_tiny_shapes.py',
    'detection': ROOT / 'configs/detection/mask_rcnn_swinv2_tiny_shapes.py',
}
CHANGES = """
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
MODELS = {
    'segmentation': """
model = dict(data_preprocessor=dict(size=(64, 64)), backbone=dict(arch=arch),
             decode_head=dict(in_channels=channels, channels=16),
             auxiliary_head=dict(in_channels=64, channels=16))
train_pipeline = [*_base_.train_pipeline]
train_pipeline[2] = dict(type='RandomCrop', crop_size=(64, 64))
train_dataloader['dataset'] = dict(dataset, pipeline=train_pipeline)
""",
    'detection': """
model = dict(backbone=dict(arch=arch), neck=dict(in_channels=channels))
val_evaluator = dict(ann_file='{data}/annotations/instances_val.json')
test_evaluator = val_evaluator
""",
}


@pytest.fixture(scope='module')
def workshop(tmp_path_factory):
    """A folder with a small data set and a quick config for each task."""
    folder = tmp_path_factory.mktemp('tools')
    make_shapes(folder / 'shapes', train=8, val=3, size=64, seed=0)
    for task, base in CONFIGS.items():
        (folder / f'{task}.py').write_text(
            (CHANGES + MODELS[task]).format(base=base, data=folder / 'shapes')
        )
    return folder


def script(name, *args, **kwargs):
    return subprocess.Popen(
        [sys.executable, ROOT / 'tools' / name, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        **kwargs,
    )


def succeed(name, *args, **kwargs):
    process = script(name, *args, **kwargs)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.mark.parametrize('task', CONFIGS)
def test_train_kill_resume_test_draw(workshop, task):
    work_dir, config = workshop / f'work_{task}', workshop / f'{task}.py'
    process = script('train.py', config, '--work-dir', work_dir)
    deadline = time.time() + 200
    while not (work_dir / 'iter_4.pth').exists() and process.poll() is None:
        assert time.time() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stdout.read()[-3000:]
    assert not (work_dir / 'iter_6.pth').exists()
    # What a kill in the middle of a save leaves: the newest file is cut short.
    (work_dir / 'iter_5.pth').write_bytes((work_dir / 'iter_2.pth').read_bytes()[:5000])

    output = succeed('train.py', config, '--work-dir', work_dir, '--resume')
    resumed = 4 if 'resumed epoch: 0, iter: 4' in output else 2
    assert f'resumed epoch: 0, iter: {resumed}' in output
    assert f'[{resumed + 1}/6]' in output
    assert f'[{resumed}/6]' not in output
    assert 'effective batch size: 2 = 2 a process x 1 processes x 1 accumulated' in output

    (work_dir / 'last_checkpoint').write_text('')  # or this file is
    checkpoint = work_dir / 'iter_6.pth'
    out = work_dir / ('labels' if task == 'segmentation' else 'predictions.pkl')
    output = succeed(
        'test.py',
        config,
        work_dir,
        '--work-dir',
        work_dir,
        '--baseline',
        '--show-dir',
        work_dir / 'shown',
        '--out',
        out,
    )
    results = json.loads((work_dir / 'test_results.json').read_text())['results']
    columns = ('mIoU', 'mAcc', 'aAcc') if task == 'segmentation' else ('AP', 'AP50', 'AP75')
    table = output[output.rindex(str(checkpoint)) :]
    assert all(column in table for column in columns)
    assert 'most frequent class' in table
    if task == 'segmentation':
        assert f'{results["model"]["mIoU"]:.3f}' in table
        assert len(list(out.glob('*.png'))) == 3
    else:
        assert f'{results["model"]["coco/segm_mAP"]:.3f}' in table
        assert len(pickle.loads(out.read_bytes())) == 3
    assert len(list((work_dir / 'shown').rglob('*.png'))) == 3

    succeed('test.py', config, checkpoint, '--work-dir', work_dir, '--tta', '--baseline')
    with_tta = json.loads((work_dir / 'test_results.json').read_text())['results']
    key = 'mIoU' if task == 'segmentation' else 'coco/bbox_mAP'
    assert with_tta['model'][key] >= 0
    assert with_tta['most frequent class'] == results['most frequent class']
    loaded = open_checkpoint(str(checkpoint))  # as a later config's init_cfg would
    assert (loaded.format, loaded.prefix) == ('swinv2_backbone', 'backbone.')
    assert loaded.pretrained_window_sizes == dict.fromkeys(range(4), (8, 8))
    image = work_dir / 'side_by_side.png'
    assert str(image) in succeed(
        'analysis_tools/side_by_side.py',
        config,
        checkpoint,
        '--out',
        image,
        '--num',
        2,
        '--side',
        100,
    )
    import cv2

    height, width = cv2.imread(str(image)).shape[:2]
    assert (height, width) == (2 * (100 + 22 + 4), 300)


@pytest.mark.parametrize('task', CONFIGS)
def test_other_windows(workshop, task):
    """--window-size does what a config with that window does, a row each."""
    work_dir, checkpoint = workshop / f'windows_{task}', workshop / f'random_{task}.pth'
    cfg = Config.fromfile(workshop / f'{task}.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(1)
        model = REGISTRY.build(cfg.model)
        randomize_parameters(model.backbone)
        torch.save({'state_dict': model.state_dict()}, checkpoint)

    def results():
        return json.loads((work_dir / 'test_results.json').read_text())['results']

    output = succeed(
        'test.py',
        workshop / f'{task}.py',
        checkpoint,
        '--work-dir',
        work_dir,
        '--window-size',
        8,
        '4x6',
        '3,5,2,2',
        8,
    )
    rows = results()
    assert list(rows) == ['window 8', 'window 4x6', 'window 3,5,2,2']
    table = output[output.rindex(str(checkpoint)) :]
    for name, row in rows.items():
        assert name in table
        assert row['s/image'] > 0
        assert row['peak MB'] > 0
    assert 's/image' in table
    if task == 'segmentation':
        assert len({row['mIoU'] for row in rows.values()}) == 3, 'each window has its own answer'
    if task == 'detection':
        return  # Random weights find nothing, at any window.
    for text, setting in (('8', '8'), ('4x6', '(4,6)'), ('3,5,2,2', '[3,5,2,2]')):
        succeed(
            'test.py',
            workshop / f'{task}.py',
            checkpoint,
            '--work-dir',
            work_dir,
            '--cfg-options',
            f'model.backbone.window_size={setting}',
            'model.backbone.pretrained_window_sizes=8',
        )
        built = results()['model']
        assert 's/image' not in built
        for key, value in built.items():
            assert rows[f'window {text}'][key] == pytest.approx(value, abs=1e-9), (text, key)


@pytest.mark.parametrize(
    ('text', 'size'),
    [
        ('16', 16),
        ('8x16', (8, 16)),
        ('16,16,16,8', [16, 16, 16, 8]),
        ('8,4x6,8,2', [8, (4, 6), 8, 2]),
    ],
)
def test_windows_of_a_command_line(text, size):
    assert cli.window(text) == (text, size)


@pytest.mark.parametrize(
    'text', ['0', '8x', '8x8x8', '8x8x8x8', '1_6', '8,8', '-4', 'a', '', '8.5', '8,8,8,0']
)
def test_no_windows_of_a_command_line(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"got '{re.escape(text)}', allowed: a s"):
        cli.window(text)


@pytest.mark.parametrize('task', CONFIGS)
def test_two_processes(workshop, task):
    """DistributedDataParallel: every parameter takes part, and one process reports."""
    config = workshop / f'two_processes_{task}.py'
    config.write_text(
        f"_base_ = '{workshop / task}.py'\n"
        "model_wrapper_cfg = dict(type='MMDistributedDataParallel', "
        'device_ids=None)\n'
    )
    output = succeed(
        '../tests/helpers/run_two_processes.py', config, workshop / f'work_two_{task}', cwd=workshop
    )
    assert output.count('effective batch size: 4 = 2 a process x 2 processes') == 1


def complaint(monkeypatch, capsys, main, *args):
    """What a script says when it refuses: exactly one line on stderr."""
    monkeypatch.setattr(sys, 'argv', [f'{main.__module__}.py', *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    message = ended.value.code if isinstance(ended.value.code, str) else capsys.readouterr().err
    assert message.strip().count('\n') == 0, message
    return message


WRONG = {
    'no config': (train.main, ['nothing.py'], r"config 'nothing.py' does not exist"),
    'misspelt config': (
        train.main,
        [str(CONFIGS['detection']).replace('_shapes', '_shape')],
        'did you mean .*mask_rcnn_swinv2_tiny_shapes.py',
    ),
    'unknown option': (
        train.main,
        ['{seg}', '--amq'],
        r"unknown option '--amq' \(did you mean "
        r"'--amp'",
    ),
    'no argument': (test.main, ['{seg}'], 'arguments are required: checkpoint'),
    'cfg-options without =': (
        train.main,
        ['{seg}', '--cfg-options', 'max_iters'],
        r"got 'max_iters', allowed: key=value",
    ),
    'misspelt top-level key': (
        train.main,
        ['{seg}', '--cfg-options', 'trian_cfg.max_iters=3'],
        r"unknown key 'trian_cfg' \(did you mean 'train_cfg'",
    ),
    'misspelt leaf': (
        train.main,
        ['{seg}', '--cfg-options', 'train_dataloader.batch_siz=3'],
        r"unknown key 'batch_siz' \(did you mean 'batch_size'",
    ),
    'misspelt backbone argument': (
        train.main,
        ['{seg}', '--cfg-options', 'model.backbone.window_sise=16'],
        r"unknown key 'window_sise' \(did you mean 'window_size'",
    ),
    'index beyond a list': (
        train.main,
        ['{seg}', '--cfg-options', 'param_scheduler.7.end=3'],
        "'param_scheduler' is a list of 2; '7' is no index",
    ),
    'below a leaf': (
        train.main,
        ['{seg}', '--cfg-options', 'train_cfg.max_iters.x=3'],
        "'train_cfg.max_iters' is no dict but 6",
    ),
    'key that no class takes': (
        train.main,
        ['{seg}', '--cfg-options', 'model.decode_head.num_klasses=3'],
        'num_klasses',
    ),
    'bad value': (
        train.main,
        ['{seg}', '--cfg-options', 'model.backbone.window_size=0'],
        'window_size: got 0, allowed: an integer of at least 1',
    ),
    'no data': (
        train.main,
        ['{seg}', '--cfg-options', 'train_dataloader.dataset.data_root=data/abc'],
        r"data 'data/abc' not found \(train_dataloader of .*: see \"Data\" in README",
    ),
    'no annotations': (
        test.main,
        [
            '{det}',
            '{weights}',
            '--cfg-options',
            'test_dataloader.dataset.ann_file=annotations/x.json',
        ],
        r"shapes/annotations/x.json' not found .*make data/shapes",
    ),
    'no ADE20K': (train.main, ['{ade}'], r"data 'data/ade/ADEChallengeData2016' not found"),
    'no COCO': (train.main, ['{coco}'], r"data 'data/coco' not found"),
    'no mmpretrain': (
        test.main,
        ['{in1k}', '{weights}'],
        r'needs mmpretrain, which cannot be imported here \(',
    ),
    'several windows drawn into one folder': (
        test.main,
        ['{seg}', '{weights}', '--window-size', '8', '16', '--show-dir', 'x'],
        '--show-dir: got 2 window sizes, whose predictions would overwrite each other',
    ),
    'no window': (
        test.main,
        ['{seg}', '{weights}', '--window-size', '8x'],
        "--window-size: got '8x', allowed: a side as 16, HEIGHTxWIDTH",
    ),
    'no checkpoint': (
        test.main,
        ['{seg}', 'nothing.pth'],
        "checkpoint 'nothing.pth' does not exist",
    ),
    'no checkpoint to resume': (
        train.main,
        ['{seg}', '--resume', 'nothing.pth'],
        "--resume: checkpoint 'nothing.pth' does not exist",
    ),
    'another number of classes': (
        test.main,
        ['{seg}', '{other}'],
        r'it lacks 4 parameters \(auxiliary_head.conv_seg.bias \(5,\), .* has, of no use here, 4',
    ),
    'nothing to go on from': (
        train.main,
        ['{seg}', '--resume', '{other}'],
        'the checkpoint has weights alone, no state of a training',
    ),
    'load_from that matches nothing': (
        train.main,
        ['{seg}', '--cfg-options', 'load_from={weights}'],
        "does not fit the config's",
    ),
    'a text file for a checkpoint': (test.main, ['{seg}', '{text}'], 'refused by the safe loader'),
    'a folder without checkpoints': (test.main, ['{seg}', '{empty}'], 'no iter_.* in this folder'),
    'cfg-options that cannot be read': (
        train.main,
        ['{seg}', '--cfg-options', 'train_dataloader.batch_size=[1,(2]'],
        'cannot be read',
    ),
    'a model that is none': (
        train.main,
        ['{seg}', '--cfg-options', 'model=3'],
        'model should be .* but got 3',
    ),
    'no batch size to scale to': (
        train.main,
        ['{seg}', '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'],
        'the config lacks auto_scale_lr',
    ),
    'no images': (
        side_by_side.main,
        ['{seg}', '{weights}', '--out', 'x.png', '--num', '0'],
        "--num: got '0', allowed: an integer of at least 1",
    ),
    'weights of another model': (
        test.main,
        ['{seg}', '{weights}'],
        r"does not fit the config's model: it lacks \d+ parameters",
    ),
    'no pretrained weights': (
        train.main,
        ['{seg}', '--cfg-options', 'model.backbone.init_cfg.type=Pretrained'],
        "init_cfg={'type': 'Pretrained'} .* set `_delete_=True`",
    ),
    'out of a detector': (
        test.main,
        ['{det}', '{weights}', '--out', 'x.json'],
        "--out: got 'x.json', allowed for a detector: a .pkl file",
    ),
}


if not torch.cuda.is_available():
    WRONG['a distributed job without a GPU'] = (
        train.main,
        ['{seg}', '--launcher', 'pytorch'],
        '--launcher pytorch: mmengine starts',
    )
    WRONG['mixed precision without a GPU'] = (train.main, ['{seg}', '--amp'], 'only available')


@pytest.mark.parametrize(('main', 'args', 'message'), WRONG.values(), ids=WRONG)
def test_mistakes_end_in_one_line(workshop, tmp_path, monkeypatch, capsys, main, args, message):
    monkeypatch.chdir(tmp_path)  # where data/ is not
    weights = tmp_path / 'weights.pth'
    torch.save({'state_dict': {'x': torch.ones(1)}}, weights)
    cfg = Config.fromfile(workshop / 'segmentation.py')
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.num_classes = 4
    with REGISTRY.switch_scope_and_registry('mmseg') as registry:
        torch.save({'state_dict': registry.build(cfg.model).state_dict()}, tmp_path / 'other.pth')
    (tmp_path / 'text.pth').write_text('no checkpoint')
    (tmp_path / 'empty').mkdir()
    names = {
        '{seg}': workshop / 'segmentation.py',
        '{det}': workshop / 'detection.py',
        '{weights}': weights,
        '{other}': tmp_path / 'other.pth',
        '{text}': tmp_path / 'text.pth',
        '{empty}': tmp_path / 'empty',
        '{ade}': ROOT / 'configs/segmentation/upernet_swinv2_tiny_ade20k.py',
        '{in1k}': ROOT / 'configs/classification/swinv2_tiny_in1k.py',
        '{coco}': ROOT / 'configs/detection/mask_rcnn_swinv2_tiny_coco.py',
    }
    args = [names.get(arg, arg.replace('{weights}', str(weights))) for arg in args]
    args += ['--work-dir', tmp_path]
    assert re.search(message, complaint(monkeypatch, capsys, main, *args))


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
        'work_dir',
        'default_hooks.early_stopping.type',
        'train_cfg.dynamic_intervals',
        'param_scheduler.1.end',
        'model.backbone.with_cp',
        'train_dataloader.dataset.indices',
        'train_dataloader.drop_last',
        'default_hooks.checkpoint.save_last',
        'visualizer.vis_backends.0.save_dir',
    ],
)
def test_overrides_that_are_read_are_accepted(key):
    for config in CONFIGS.values():
        check_override(Config.fromfile(config), key)


def test_accumulation_counts_in_the_scaling(workshop, monkeypatch):
    config = workshop / 'segmentation.py'
    monkeypatch.setattr(sys, 'argv', ['train.py', str(config), '--auto-scale-lr'])
    cfg = Config.fromfile(config)
    cfg.optim_wrapper.accumulative_counts = 2
    train.apply_options(cfg, train.parse_args())
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=2)


def test_resume_without_checkpoints_keeps_load_from(workshop, tmp_path, monkeypatch):
    config = workshop / 'segmentation.py'
    monkeypatch.setattr(sys, 'argv', ['train.py', str(config), '--resume'])
    cfg = Config.fromfile(config)
    cfg.load_from, cfg.work_dir = 'start.pth', str(tmp_path)
    train.apply_options(cfg, train.parse_args())
    assert (cfg.resume, cfg.load_from) == (False, 'start.pth')


def test_misspelt_key_in_a_config_file(workshop, tmp_path, monkeypatch, capsys):
    config = tmp_path / 'typo.py'
    config.write_text(f"_base_ = '{workshop / 'segmentation.py'}'\nparam_schedulr = []\n")
    assert "unknown key 'param_schedulr' (did you mean 'param_scheduler'?)" in complaint(
        monkeypatch, capsys, train.main, config
    )


def test_pretrained_file_that_is_missing(workshop, tmp_path, monkeypatch, capsys):
    config = tmp_path / 'missing.py'
    config.write_text(
        f"_base_ = '{workshop / 'segmentation.py'}'\n"
        "model = dict(backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', "
        "checkpoint='nowhere.pth')))\n"
    )
    assert 'checkpoint nowhere.pth: no such file' in complaint(
        monkeypatch, capsys, train.main, config, '--work-dir', tmp_path
    )


def test_baseline_by_hand(workshop):
    """The most frequent class is the background; its share of the pixels is its IoU."""
    import cv2

    labels = [cv2.imread(str(p), -1) for p in sorted((workshop / 'shapes/semseg/val').iterdir())]
    share = sum((label == 0).sum() for label in labels) / sum(label.size for label in labels)
    present = len(set().union(*(set(label.ravel().tolist()) for label in labels)))
    baseline = majority_baseline(Config.fromfile(workshop / 'segmentation.py'))
    assert baseline['aAcc'] == pytest.approx(100 * share, abs=0.01)
    assert baseline['mIoU'] == pytest.approx(100 * share / present, abs=0.01)
    detection = majority_baseline(Config.fromfile(workshop / 'detection.py'))
    assert 0 <= detection['coco/segm_mAP'] < 0.1
