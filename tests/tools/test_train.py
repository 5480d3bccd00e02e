"""tools/train.py: training is killed, resumed and tested; mistakes end in one line."""

import json
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.random_training import outcome
from tests.helpers.scripts import ROOT, call, error_line, start

for toolbox in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(toolbox)

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmseg.models import UPerHead

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.compat import safe_mmengine_globals
from tools import test, train
from tools.engine.work_dir import latest_checkpoint

TASKS = ('segmentation', 'detection')


@pytest.mark.parametrize('task', TASKS)
def test_killed_training_resumes(tasks, tmp_path, task):
    config = tasks.configs[task]
    process = start('tools/train.py', config, '--work-dir', tmp_path)
    deadline = time.time() + 200
    while not (tmp_path / 'iter_4.pth').exists() and process.poll() is None:
        assert time.time() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stdout.read()[-3000:]
    assert not (tmp_path / 'iter_6.pth').exists()
    # What a kill in the middle of a save leaves: the newest file is truncated.
    (tmp_path / 'iter_5.pth').write_bytes((tmp_path / 'iter_2.pth').read_bytes()[:5000])

    call(train.main, config, '--work-dir', tmp_path, '--resume')
    log = max(tmp_path.glob('*/*.log')).read_text()
    resumed = 4 if 'resumed epoch: 0, iter: 4' in log else 2
    assert f'resumed epoch: 0, iter: {resumed}' in log
    assert f'[{resumed + 1}/6]' in log
    assert f'[{resumed}/6]' not in log
    assert 'effective batch size: 2 = 2 per process x 1 processes x 1 accumulated' in log

    (tmp_path / 'last_checkpoint').write_text('')  # A kill may also leave this file empty.
    call(test.main, config, tmp_path, '--work-dir', tmp_path)
    written = json.loads((tmp_path / 'test_results.json').read_text())
    assert written['checkpoint'] == str(tmp_path / 'iter_6.pth')

    # The file can start another training, and records its pretrained window sizes.
    cfg = Config.fromfile(config).model.backbone
    del cfg['type']
    cfg.update(window_size=4, pretrained_window_sizes='auto')
    cfg.init_cfg = dict(type='Pretrained', checkpoint=written['checkpoint'])
    backbone = SwinTransformerV2(**cfg)
    backbone.init_weights()
    assert [stage.pretrained_window for stage in backbone.layers] == [(8, 8)] * 4


@pytest.mark.parametrize(
    ('number', 'code', 'line'),
    [
        (signal.SIGINT, 130, 'train.py: interrupted\n'),
        (signal.SIGTERM, 75, 'train.py: preempted (SIGTERM) after iteration '),
    ],
    ids=['Ctrl-C', 'preemption'],
)
def test_interrupted_training_ends_quietly(tasks, tmp_path, number, code, line):
    process = start(
        *('tools/train.py', tasks.configs['segmentation'], '--work-dir', tmp_path),
        *('--cfg-options', 'train_cfg.max_iters=10000', 'train_dataloader.num_workers=1'),
        # In the background of a shell it is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    deadline = time.time() + 200
    while not (tmp_path / 'iter_8.pth').exists() and process.poll() is None:
        assert time.time() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, number)  # As a terminal does, and torchrun: the workers are meant, too.
    output = process.communicate()[0]
    assert process.returncode == code, output[-3000:]
    assert line in output
    assert 'Traceback' not in output
    assert 's per iteration: the 9994 iterations that are left take' in output
    latest = latest_checkpoint(tmp_path)
    assert (f'{latest} is saved. To go on: --resume' in output) == (code == 75)
    assert not list(tmp_path.glob('*.partial'))


def test_two_runs_with_a_seed_are_identical(tasks, tmp_path):
    # The second config has settings of randomness already.
    for name, settings in (('first', []), ('second', ['randomness.diff_rank_seed=False'])):
        arguments = tasks.configs['segmentation'], '--work-dir', tmp_path / name
        options = '--cfg-options', 'train_cfg.max_iters=2', *settings
        call(train.main, *arguments, '--seed', 7, '--deterministic', *options)
        torch.use_deterministic_algorithms(False)
    first, second = (outcome(tmp_path / name / 'iter_2.pth') for name in ('first', 'second'))
    assert first == second
    assert first['seed'] == 7
    [log] = (tmp_path / 'first').glob('*/*.log')
    assert '\n    seed: 7\n' in log.read_text()
    kept = Config.fromfile(tmp_path / 'first' / 'segmentation.py')
    assert (kept.randomness.seed, kept.randomness.deterministic) == (7, True)


def test_load_from_beside_init_cfg(tasks, tmp_path):
    """Both read a file that mmengine saved, the one in the package, the other in mmengine."""
    arguments = [tasks.configs['segmentation'], '--cfg-options', 'train_cfg.max_iters=2']
    call(train.main, *arguments, '--work-dir', tmp_path / 'first')
    saved = tmp_path / 'first' / 'iter_2.pth'
    arguments += [
        f'load_from={saved}',
        'model.backbone.pretrained_window_sizes=auto',
        'model.backbone.init_cfg._delete_=True',
        'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={saved}',
    ]
    call(train.main, *arguments, '--work-dir', tmp_path / 'second')
    [log] = (tmp_path / 'second').glob('*/*.log')
    assert f'Load checkpoint from {saved}' in log.read_text()
    assert (tmp_path / 'second' / 'iter_2.pth').exists()


def test_a_work_dir_in_use_is_refused(tasks, tmp_path, monkeypatch, capsys):
    def in_use(*args):
        raise BlockingIOError

    monkeypatch.setattr('fcntl.lockf', in_use)
    message = error_line(capsys, train.main, tasks.configs['segmentation'], '--work-dir', tmp_path)
    assert f"'{tmp_path}' is in use by another training" in message
    assert not list(tmp_path.glob('*.py')), "the other training's config is kept"


def test_resume_in_a_config_takes_the_newest(tasks, tmp_path, parsed):
    cfg = Config.fromfile(tasks.configs['segmentation'])
    cfg.resume, cfg.work_dir = True, str(tmp_path)
    torch.save({}, tmp_path / 'iter_3.pth')
    train.apply_options(cfg, parsed(tasks.configs['segmentation']))
    assert (cfg.resume, cfg.load_from) == (True, str(tmp_path / 'iter_3.pth'))


@pytest.fixture
def parsed(monkeypatch):
    """The arguments of a command line."""

    def parse(*args):
        monkeypatch.setattr(sys, 'argv', ['train.py', *map(str, args)])
        return train.parse_args()

    return parse


def test_accumulation_counts_in_the_scaling(tasks, tmp_path):
    """The learning rate is scaled to the batch of an update; the saved config is the user's."""
    arguments = tasks.configs['segmentation'], '--work-dir', tmp_path, '--auto-scale-lr'
    arguments += '--accumulate', 4, '--cfg-options', 'train_cfg.max_iters=2'
    call(train.main, *arguments)
    [log] = tmp_path.glob('*/*.log')
    said = 'effective batch size: 8 = 2 per process x 1 processes x 4 accumulated; the learning'
    assert f'{said} rate is scaled by 2; the weights are updated after every 4' in log.read_text()
    original, used = (
        Config.fromfile(path)
        for path in (tasks.configs['segmentation'], tmp_path / 'segmentation.py')
    )
    assert used.auto_scale_lr == {**original.auto_scale_lr, 'enable': True}
    with safe_mmengine_globals():
        groups = torch.load(tmp_path / 'iter_2.pth', weights_only=True)['optimizer']['param_groups']
    assert {group['initial_lr'] for group in groups} == {original.optim_wrapper.optimizer.lr * 2}


def test_scaling_in_the_config_counts_accumulation():
    cfg = Config(dict(optim_wrapper=dict(accumulative_counts=2)))
    runner = SimpleNamespace(cfg=cfg, auto_scale_lr=dict(enable=True, base_batch_size=16))
    train.scale_with_accumulation(runner)
    assert runner.auto_scale_lr == dict(enable=True, base_batch_size=8)


def test_amp_on_a_cpu_trains_under_bfloat16(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr('tools.engine.amp.get_device', lambda: 'cpu')
    seen = []
    forward = UPerHead.forward

    def record(head, inputs):
        logits = forward(head, inputs)
        if head.training:
            seen.append((logits.dtype, torch.get_autocast_dtype('cpu')))
        return logits

    monkeypatch.setattr(UPerHead, 'forward', record)
    arguments = tasks.configs['segmentation'], '--work-dir', tmp_path, '--amp'
    call(train.main, *arguments, '--cfg-options', 'train_cfg.max_iters=2')
    assert seen == [(torch.bfloat16, torch.bfloat16)] * 2
    with safe_mmengine_globals():
        state = torch.load(tmp_path / 'iter_2.pth', weights_only=True)
    assert {tensor.dtype for tensor in state['state_dict'].values()} <= {torch.float32, torch.int64}
    moments = state['optimizer']['state'].values()
    assert any(each['exp_avg'].abs().max() > 0 for each in moments)


def test_resume_without_checkpoints_keeps_load_from(tasks, tmp_path, parsed):
    cfg = Config.fromfile(tasks.configs['segmentation'])
    cfg.load_from, cfg.work_dir = 'start.pth', str(tmp_path)
    train.apply_options(cfg, parsed(tasks.configs['segmentation'], '--resume'))
    assert (cfg.resume, cfg.load_from) == (False, 'start.pth')


MISTAKES = {
    'no such config': (['nothing.py'], "config 'nothing.py' does not exist"),
    'misspelled config': (
        [ROOT / 'configs/detection/mask_rcnn_swinv2_tiny_shape.py'],
        "mask_rcnn_swinv2_tiny_shapes.py'?)",
    ),
    'unknown option': (
        ['{segmentation}', '--amq'],
        "unknown option '--amq' (did you mean '--amp'?)",
    ),
    'no ADE20K': (
        [ROOT / 'configs/segmentation/upernet_swinv2_tiny_ade20k.py'],
        "data 'data/ade/ADEChallengeData2016' not found",
    ),
    'no COCO': (
        [ROOT / 'configs/detection/mask_rcnn_swinv2_tiny_coco.py'],
        "data 'data/coco' not found",
    ),
    'variable of the config': (
        ['{segmentation}', '--cfg-options', 'dataset.data_root=/nowhere'],
        "data '/nowhere' not found",
    ),
    'class that the annotations lack': (
        [
            '{detection}',
            '--cfg-options',
            'train_dataloader.dataset.metainfo.classes=[circle,square,triangle,moon]',
        ],
        "the file lacks 'moon'",
    ),
    'fewer classes in a head than in the data': (
        ['{segmentation}', '--cfg-options', 'model.decode_head.num_classes=4'],
        'model.decode_head.num_classes: got 4; the data set has 5 classes',
    ),
    'no image with this suffix': (
        ['{segmentation}', '--cfg-options', 'train_dataloader.dataset.img_suffix=.tif'],
        "with img_suffix='.tif'",
    ),
    'batch of one image': (
        ['{segmentation}', '--cfg-options', 'train_dataloader.batch_size=1'],
        'decode_head.psp_modules.0.1.bn sees after pooling to 1 x 1: set train_dataloader.batch_s',
    ),
    'no such checkpoint to resume': (
        ['{segmentation}', '--resume', 'nothing.pth'],
        "--resume: checkpoint 'nothing.pth' does not exist",
    ),
    'seed out of range': (
        ['{segmentation}', '--seed', '-1'],
        "--seed: got '-1', allowed: an integer from 0 to 2**32 - 1",
    ),
    'another optimizer than AdamW': (
        [
            *('{segmentation}', '--optimizer', 'fused'),
            *('--cfg-options', 'optim_wrapper.optimizer.type=SGD'),
        ],
        "--optimizer fused: optim_wrapper.optimizer.type is 'SGD', allowed: 'AdamW'",
    ),
    'several optimizers that accumulate': (
        [
            *('{segmentation}', '--accumulate', '2', '--cfg-options'),
            'optim_wrapper={{"_delete_":True,"constructor":"Two"}}',
        ],
        '--accumulate: optim_wrapper has several optimizers; set accumulative_counts in each',
    ),
    'accumulation over nothing': (
        ['{segmentation}', '--accumulate', '0'],
        "--accumulate: got '0', allowed: an integer of at least 1",
    ),
    'no batch size to scale from': (
        ['{segmentation}', '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'],
        'the config lacks auto_scale_lr',
    ),
    'resuming from weights alone': (
        ['{segmentation}', '--resume', '{weights_alone}'],
        'the checkpoint has weights alone, no state of a training',
    ),
    'load_from that matches nothing': (
        ['{segmentation}', '--cfg-options', 'load_from={weights}'],
        "does not fit the config's",
    ),
    'pretrained file that is missing': (
        [
            '{segmentation}',
            '--cfg-options',
            'model.backbone.init_cfg._delete_=True',
            'model.backbone.init_cfg.type=Pretrained',
            'model.backbone.init_cfg.checkpoint=nowhere.pth',
        ],
        'checkpoint nowhere.pth: no such file',
    ),
    'pretrained weights that are none': (
        ['{segmentation}', '--cfg-options', 'model.backbone.init_cfg.type=Pretrained'],
        'set `_delete_=True`',
    ),
    # What mmengine's registries and the classes that they build refuse:
    'bad value': (
        ['{segmentation}', '--cfg-options', 'model.backbone.window_size=0'],
        'window_size: got 0, allowed: an integer of at least 1',
    ),
    'argument that the backbone does not take': (
        ['{segmentation}', '--cfg-options', 'model.backbone.windows=8'],
        "got an unexpected keyword argument 'windows'",
    ),
    'argument that the head does not take': (
        ['{segmentation}', '--cfg-options', 'model.decode_head.klasses=3'],
        "got an unexpected keyword argument 'klasses'",
    ),
    'unknown class': (
        ['{segmentation}', '--cfg-options', 'model.backbone.type=Swim'],
        'Swim is not in the mmseg::model registry',
    ),
    'unknown hook': (
        ['{segmentation}', '--cfg-options', 'default_hooks.logger.type=LogHook'],
        'LogHook is not in the mmseg::hook registry',
    ),
    'distributed job that was not launched': (
        ['{segmentation}', '--launcher', 'pytorch'],
        '--launcher pytorch: RANK is not set',
    ),
    'model that is no dict': (
        ['{segmentation}', '--cfg-options', 'model=3'],
        'but got 3',
    ),
}  # fmt: skip
if not torch.cuda.is_available():
    MISTAKES['float16 without a GPU'] = (
        ['{segmentation}', '--amp', 'fp16'],
        '--amp: float16 is for GPUs, and torch finds none here; allowed on a CPU: --amp bf16',
    )
    MISTAKES['mixed precision of a detector without a GPU'] = (
        ['{detection}', '--amp'],
        "allowed on a CPU: no --amp, since mmcv's operators take no bfloat16",
    )


@pytest.mark.parametrize(('args', 'message'), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_in_one_line(tasks, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)  # where data/ is not
    alone = tasks.checkpoints['segmentation']
    names = dict(**tasks.configs, weights=tasks.weights, weights_alone=alone)
    args = [str(arg).format(**names) for arg in args]
    assert message in error_line(capsys, train.main, *args, '--work-dir', tmp_path)


def test_bug_in_the_backbone_shows_its_traceback(tasks, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        return {}['patch_size']

    monkeypatch.setattr('swinv2_backbone.swin_transformer_v2.PatchEmbed', broken)
    with pytest.raises(KeyError, match='patch_size'):
        call(train.main, tasks.configs['segmentation'], '--work-dir', tmp_path)


def test_bug_in_a_hook_shows_its_traceback(tasks, tmp_path):
    class BrokenHook(Hook):
        def before_run(self, runner):
            runner.no_such_attribute  # noqa: B018

    config = tmp_path / 'hook.py'
    config.write_text(
        f"_base_ = '{tasks.configs['segmentation']}'\ncustom_hooks = [dict(type='BrokenHook')]\n"
    )
    HOOKS.register_module(module=BrokenHook)
    try:
        with pytest.raises(AttributeError, match='no_such_attribute'):
            call(train.main, config, '--work-dir', tmp_path)
    finally:
        del HOOKS.module_dict['BrokenHook']


def test_exceptions_after_the_first_batch_keep_their_traceback(tasks, tmp_path, monkeypatch):
    def missing(dataset, index):
        raise FileNotFoundError('no such image')

    monkeypatch.setattr('mmseg.datasets.BaseSegDataset.__getitem__', missing)
    with pytest.raises(FileNotFoundError):
        call(train.main, tasks.configs['segmentation'], '--work-dir', tmp_path)
