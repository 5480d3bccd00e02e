"""mmpretrain's classifier with its own backbone and with ours: the same logits and scores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from swinv2_backbone.compat import safe_mmengine_globals

from .comparison import assert_equal_in_float64, in_float64
from .implementations import need, noise, random_parameter

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/classification/swinv2_tiny_in1k.py'


@pytest.fixture(scope='module', autouse=True)
def _mmpretrain():
    need('mmpretrain')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder as ImageNet is laid out: ten classes of two images."""
    from PIL import Image

    root = tmp_path_factory.mktemp('imagenet')
    for index in range(20):
        folder = root / 'val' / f'n{index // 2:08}'
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 255, (7, 9, 3), np.uint8)
        Image.fromarray(noise).resize((340, 300), Image.Resampling.BICUBIC).save(
            folder / f'{index}.png'
        )
    (root / 'meta').mkdir()
    (root / 'meta/val.txt').write_text(
        ''.join(f'n{index // 2:08}/{index}.png {index // 2}\n' for index in range(20))
    )
    return root


@pytest.fixture(scope='module')
def theirs():
    """mmpretrain's own SwinV2-T classifier, with random weights, in eval mode."""
    from mmpretrain.registry import MODELS
    from mmpretrain.utils import register_all_modules

    register_all_modules()
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='SwinTransformerV2', arch='tiny', img_size=256, window_size=[8] * 4),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=1000, in_channels=768),
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(random_parameter(name, parameter.shape))
        model.head.fc.weight[10:] = 0  # Only ten classes can win: or all scores would be 0.
        model.head.fc.bias[10:] = -1e3
    return model.eval()


def run(script, *arguments):
    process = subprocess.run(
        [
            sys.executable,
            Path(__file__).with_name('run_with_mmpretrain.py'),
            ROOT / script,
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=500,
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
        },
    )
    assert process.returncode == 0, process.stdout[-1500:] + process.stderr[-1500:]
    return process.stdout


def convert(theirs, folder):
    """Save mmpretrain's classifier and convert it, with its head, to `ours.pth`."""
    torch.save({'state_dict': theirs.state_dict()}, folder / 'theirs.pth')
    paths = folder / 'theirs.pth', folder / 'ours.pth'
    run('tools/model_converters/convert_checkpoint.py', *paths, '--to', 'swinv2_backbone')


def test_scores_are_the_same(theirs, images, tmp_path):
    """mmpretrain's file, converted with its head, tested by tools/test.py."""
    from mmengine.config import Config
    from mmengine.registry import DATASETS, DefaultScope

    convert(theirs, tmp_path)
    output = run(
        'tools/test.py',
        CONFIG,
        tmp_path / 'ours.pth',
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        f'test_dataloader.dataset.data_root={images}/',
        'test_dataloader.batch_size=5',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    )
    rows = json.loads((tmp_path / 'work/test_results.json').read_text())['results']

    dataset = Config.fromfile(CONFIG).test_dataloader.dataset
    dataset.data_root = f'{images}/'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        samples = list(DATASETS.build(dataset))
    batch = torch.stack([sample['inputs'] for sample in samples]).flip(1).float()  # BGR to RGB
    mean, std = (
        torch.tensor(x)[:, None, None] for x in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    )
    labels = torch.stack([sample['data_samples'].gt_label for sample in samples])
    assert labels.flatten().tolist() == [index // 2 for index in range(20)]
    with torch.no_grad():
        best = theirs.head(theirs.extract_feat((batch - mean) / std)).topk(5).indices
    assert 0 < (best == labels).any(1).double().mean() < 1
    for key, hits in (('top1', best[:, :1] == labels), ('top5', best == labels)):
        assert rows['model'][f'accuracy/{key}'] == pytest.approx(
            100 * hits.any(1).double().mean().item()
        )
    assert 'top-1   top-5' in output


def test_training_starts_from_a_classifier(theirs, images, tmp_path):
    """The recipe for a larger window, as its config says it is started, for an epoch."""
    convert(theirs, tmp_path)
    loaders = [
        f'{mode}_dataloader.{setting}'
        for mode in ('train', 'val')
        for setting in (
            f'dataset.data_root={images}/',
            'dataset.data_prefix=val',
            'dataset.ann_file=meta/val.txt',
            'dataset.indices=4',
            'batch_size=2',
            'num_workers=0',
            'persistent_workers=False',
        )
    ]
    run(
        'tools/train.py',
        CONFIG.with_name('swinv2_tiny_w16_in1k.py'),
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        f'load_from={tmp_path}/ours.pth',
        'model.backbone.init_cfg=None',
        'train_cfg.max_epochs=1',
        *loaders,
    )
    with safe_mmengine_globals():
        trained = torch.load(tmp_path / 'work/epoch_1.pth', weights_only=True)['state_dict']
    before = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    assert trained.keys() >= before.keys()
    moved = {key: (trained[key] - value).abs().max().item() for key, value in before.items()}
    assert 0 < max(moved.values()) < 1e-3, 'started from the checkpoint, and learned a little'


def test_logits_are_the_same(theirs):
    from mmengine.config import Config
    from mmpretrain.registry import MODELS

    from swinv2_backbone.checkpoints.state_dicts import to_backbone

    cfg = Config.fromfile(CONFIG)
    ours = MODELS.build(cfg.model).eval()
    found = to_backbone({'state_dict': theirs.state_dict()}, 'theirs')
    ours.backbone.load_state_dict(found.state)
    ours.head.fc.load_state_dict(
        {key.removeprefix('head.'): value for key, value in found.head.items()}
    )
    image = noise((2, 3, 256, 256), seed=1).double()
    with torch.inference_mode():
        logits = [
            model(image, mode='tensor')[:, :10] for model in (ours.double(), in_float64(theirs))
        ]
    assert logits[0].std() > 0.1
    assert_equal_in_float64(*([each] for each in logits), "logits with our config's model")


def test_layerwise_decay(theirs):
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper
    from mmpretrain.registry import MODELS

    cfg = Config.fromfile(CONFIG)
    model = MODELS.build(cfg.model)
    optim = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=cfg.optim_wrapper.optimizer,
            constructor='swinv2_backbone.SwinV2LayerDecayConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.5),
        ),
    )
    rates = {id(p): group['lr'] for group in optim.param_groups for p in group['params']}
    for name, parameter in model.named_parameters():
        inside = name.startswith(('backbone.layers', 'backbone.patch_embed'))
        assert (rates[id(parameter)] < 1e-3) == inside, name
