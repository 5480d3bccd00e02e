"""Every config of the zoo trains one step and predicts, at a reduced size."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper

from swinv2_backbone.arguments import parse_arch
from tools.utils.example_batch import build_model, example_batch, num_classes

CONFIGS = Path(__file__).parents[1] / 'configs'
ALL = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob('[!_]*/*.py'))
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


@pytest.mark.parametrize('name', ALL)
def test_one_training_step_and_one_prediction(name):
    cfg = load_reduced(name)
    model = build_model(cfg)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = example_batch(cfg, (HEIGHT, WIDTH), images=2)
    first = model.backbone.patch_embed.proj.weight
    gradients = []
    first.register_hook(gradients.append)
    before = first.detach().clone()

    log = model.train().train_step(batch, optim_wrapper)

    assert log['loss'].isfinite()
    assert log['loss'] > 0
    assert all(value.isfinite().all() for value in log.values())
    (gradient,) = gradients
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    assert not torch.equal(first, before)

    with torch.no_grad():
        samples = model.eval().test_step(example_batch(cfg, (HEIGHT, WIDTH), images=1))
    (sample,) = samples
    check_prediction(cfg, sample)
