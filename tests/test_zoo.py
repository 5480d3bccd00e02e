"""Every config is what its name says, trains one step and predicts, at a reduced size."""

import functools
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper

from swinv2_backbone.arguments import parse_arch
from tools.utils.example_batch import build_model, example_batch, num_classes

CONFIGS = Path(__file__).parents[1] / 'configs'
# That of mmpose has its own tests, in test_other_projects.py.
ALL = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.glob('[!_]*/*.py')
    if path.parent.name != 'pose'
)
# What necks and heads get from tiny and small, and from base.
CHANNELS = [
    channels
    for width in (96, 128)
    for maps in [[width * 2**stage for stage in range(4)]]
    for channels in (maps, maps[1:], maps[2])
]
FINE_TUNED = [n for n in ALL if n.endswith(('_coco.py', '_ade20k.py', '_cityscapes.py'))]
HEIGHT, WIDTH = 64, 96
# Layers and queries of transformers, points at which masks are compared, regions of RoI heads.
REDUCED = dict(
    num_layers=1,
    num_queries=20,
    num_points=64,
    num_dn_queries=8,
    num=16,
    nms_pre=50,
    max_per_img=20,
)


def reduce(node, parent=''):
    """Make transformers' depths and the training's sizes small, in place."""
    for key, value in node.items():
        # The points of a deformable attention are part of its structure.
        if key in REDUCED and not (key == 'num_points' and parent == 'self_attn_cfg'):
            node[key] = REDUCED[key]
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ConfigDict):
                reduce(each, key)


def load_reduced(name):
    """A config whose model has its parts and channels, but few layers, and small crops."""
    cfg = Config.fromfile(CONFIGS / name)
    pytest.importorskip(cfg.default_scope)
    reduce(cfg.model)
    backbone = cfg.model.backbone
    backbone.arch = dict(parse_arch(backbone.arch), depths=(1, 2, 1, 1))
    preprocessor = cfg.model.data_preprocessor
    if 'size' in preprocessor:
        preprocessor.size = (HEIGHT, WIDTH)
    for augment in preprocessor.get('batch_augments') or ():
        augment.size = (HEIGHT, WIDTH)
    if (cfg.model.get('test_cfg') or {}).get('mode') == 'slide':
        cfg.model.test_cfg.update(crop_size=(HEIGHT // 2, WIDTH // 2), stride=(24, 36))
    return cfg


def check_prediction(cfg, sample):
    """The prediction for an image has the shape, and the classes, of the config."""
    if cfg.default_scope == 'mmpretrain':
        assert sample.pred_score.shape == (cfg.model.head.num_classes,)
        assert sample.pred_score.isfinite().all()
    elif cfg.default_scope == 'mmseg':
        labels = sample.pred_sem_seg.data
        assert labels.shape == (1, HEIGHT, WIDTH)
        assert 0 <= labels.min() <= labels.max() < cfg.model.decode_head.num_classes
        assert sample.seg_logits.data.isfinite().all()
    else:
        instances = sample.pred_instances
        assert instances.bboxes.isfinite().all()
        assert instances.scores.isfinite().all()
        assert (instances.labels < num_classes(cfg)).all()
        if 'roi_head' in cfg.model or 'panoptic_head' in cfg.model:
            assert instances.masks.shape[0] == len(instances)


@pytest.mark.parametrize(
    'name',
    [
        # With few layers they are tiny's.
        pytest.param(name, marks=pytest.mark.slow if '_small_' in name else ())
        for name in ALL
    ],
)
def test_one_training_step_and_one_prediction(name):
    cfg = load_reduced(name)
    model = build_model(cfg)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = example_batch(cfg, (HEIGHT, WIDTH), images=2)
    parameters = dict(model.named_parameters())
    gradients = {}
    for key, parameter in parameters.items():
        parameter.register_hook(functools.partial(gradients.__setitem__, key))
    first = 'backbone.patch_embed.proj.weight'
    before = parameters[first].detach().clone()

    log = model.train().train_step(batch, optim_wrapper)

    assert log['loss'] > 0
    assert all(value.isfinite().all() for value in log.values())
    assert gradients[first].isfinite().all()
    assert gradients[first].abs().sum() > 0
    assert not torch.equal(parameters[first], before)
    assert set(gradients) == set(parameters), 'distributed training waits for each'

    with torch.no_grad():
        samples = model.eval().test_step(example_batch(cfg, (HEIGHT, WIDTH), images=1))
    (sample,) = samples
    check_prediction(cfg, sample)


@pytest.mark.parametrize('name', FINE_TUNED)
def test_names_say_what_a_config_is(name):
    """METHOD_swinv2_ARCH[_wWINDOW][_SIZE][_SCHEDULE]_DATA, as docs/model_zoo.md explains."""
    cfg = Config.fromfile(CONFIGS / name)
    found = re.fullmatch(
        r'\w+/(\w+)_swinv2_(tiny|small|base)(_w16)?(_640)?(_3x)?_(coco|ade20k|cityscapes)\.py', name
    )
    method, arch, window, size, schedule, data = found.groups()
    detector = cfg.model.decode_head.type if data != 'coco' else cfg.model.type
    assert (
        detector.lower()
        .removesuffix('head')
        .startswith(
            {'upernet': 'uper', 'segformer': 'segformer'}.get(method, method.replace('_', ''))[:6]
        )
    )
    assert cfg.model.backbone.arch == arch
    assert cfg.model.backbone.window_size == (16 if window else 8)
    if data == 'coco':
        epochs = 36 if schedule else 12
        assert method == 'mask2former' or cfg.train_cfg.max_epochs == epochs
    else:
        crop = (512, 1024) if data == 'cityscapes' else (640, 640) if size else (512, 512)
        step = next(s for s in cfg.train_dataloader.dataset.pipeline if s.type == 'RandomCrop')
        assert step.crop_size == cfg.model.data_preprocessor.size == crop


@pytest.mark.parametrize('name', [n for n in FINE_TUNED if not re.search('_tiny_', n)])
def test_small_and_base_differ_from_tiny_in_the_backbone_and_its_channels(name):
    """Everything else is equal, whatever is changed in tiny's config."""

    def settings(cfg):
        plain = {key: cfg[key] for key in cfg if key != 'checkpoint'}
        del plain['model']['backbone']['arch'], plain['model']['backbone']['init_cfg']
        for part in plain['model'].values():
            if isinstance(part, dict) and part.get('in_channels') in CHANNELS:
                del part['in_channels']
        return plain

    tiny = re.sub('_(small|base)_', '_tiny_', name)
    assert settings(Config.fromfile(CONFIGS / name)) == settings(Config.fromfile(CONFIGS / tiny))
