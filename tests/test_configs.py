"""Every config builds, downloads only what it should, and has the schedule it claims."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from swinv2_backbone.checkpoints.releases import resolve

CONFIGS = Path(__file__).parents[1] / 'configs'
ALL = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob('[!_]*/*.py'))
CHECKPOINT = 'swinv2://swinv2_tiny_patch4_window8_256'


def load(name):
    return Config.fromfile(CONFIGS / name)


def build(cfg):
    """The model of a config; skips where its toolbox is missing."""
    pytest.importorskip(cfg.default_scope)
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope(cfg.default_scope)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        return registry.build(cfg.model)


@pytest.mark.parametrize('name', ALL)
def test_builds_with_our_backbone(name):
    from swinv2_backbone import SwinTransformerV2

    model = build(load(name))
    assert isinstance(model.backbone, SwinTransformerV2)
    heads = [
        head
        for head in (getattr(model, 'decode_head', None), getattr(model, 'auxiliary_head', None))
        if head is not None
    ]
    classes = len(load(name).val_dataloader.dataset.get('metainfo', {}).get('classes', ()))
    for head in heads:
        assert head.num_classes == (classes or 150)


@pytest.mark.parametrize('name', ALL)
def test_only_configs_for_fine_tuning_download_weights(name):
    text = load(name).pretty_text
    assert (CHECKPOINT in text) == name.endswith(('_ade20k.py', '_coco.py', '_w16_in1k.py'))


def test_the_checkpoint_is_named_once_and_by_release():
    lines = [
        line
        for path in CONFIGS.rglob('*.py')
        for line in path.read_text().splitlines()
        if not line.startswith('#')
    ]
    assert sum('://' in line for line in lines) == 1
    assert sum(line.count(CHECKPOINT) for line in lines) == 1
    assert resolve(CHECKPOINT).startswith('https://')


@pytest.mark.parametrize('name', ALL)
def test_no_config_is_based_on_another_package(name):
    text = (CONFIGS / name).read_text()
    assert 'mmdet::' not in text
    assert 'mmseg::' not in text


def test_ade20k_recipe():
    cfg = load('segmentation/upernet_swinv2_tiny_ade20k.py')
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01
    )
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.start_factor, warm_up.end) == (1e-6, 1500)
    assert (decay.type, decay.power, decay.end) == ('PolyLR', 1.0, 160000)
    assert cfg.train_cfg.max_iters == 160000
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.model.backbone.drop_path_rate == 0.3
    crop = next(t for t in cfg.train_pipeline if t.type == 'RandomCrop')
    assert (crop.crop_size, crop.cat_max_ratio) == ((512, 512), 0.75)


def test_coco_recipe():
    cfg = load('detection/mask_rcnn_swinv2_tiny_coco.py')
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05
    )
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.start_factor, warm_up.end) == (0.001, 1000)
    assert steps.milestones == [8, 11]
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.model.backbone.drop_path_rate == 0.2
    assert cfg.val_evaluator.metric == ['bbox', 'segm']


def test_window_16_recipe_on_ade20k():
    cfg, base = (load(f'segmentation/upernet_swinv2_tiny{w}_ade20k.py') for w in ('_w16', ''))
    backbone = cfg.model.backbone
    assert (backbone.window_size, backbone.pretrained_window_sizes) == (16, 8)
    assert backbone.drop_path_rate == 0.3
    assert backbone.init_cfg.checkpoint == CHECKPOINT
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=4e-5, betas=(0.9, 0.999), weight_decay=0.05
    )
    assert cfg.optim_wrapper.paramwise_cfg == dict(layer_decay_rate=0.95)
    assert cfg.optim_wrapper.constructor == 'swinv2_backbone.SwinV2LayerDecayConstructor'
    for same in ('param_scheduler', 'train_cfg', 'train_dataloader', 'auto_scale_lr'):
        assert cfg[same] == base[same], same


def test_imagenet_recipes():
    scratch, tuned = (load(f'classification/swinv2_tiny{w}_in1k.py') for w in ('', '_w16'))
    assert scratch.model.backbone.out_indices == (3,)
    assert scratch.optim_wrapper.optimizer == dict(
        type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05
    )
    assert scratch.optim_wrapper.clip_grad == dict(max_norm=5.0)
    warm_up, cosine = scratch.param_scheduler
    assert (warm_up.end, cosine.type, cosine.end) == (20, 'CosineAnnealingLR', 300)
    assert scratch.auto_scale_lr.base_batch_size == 1024
    assert {'RandAugment', 'RandomErasing'} <= {t.type for t in scratch.train_pipeline}
    assert {a.type for a in scratch.model.train_cfg.augments} == {'Mixup', 'CutMix'}
    backbone = tuned.model.backbone
    assert (backbone.window_size, backbone.pretrained_window_sizes) == (16, 8)
    assert (tuned.optim_wrapper.optimizer.lr, tuned.optim_wrapper.optimizer.weight_decay) == (
        4e-5,
        1e-8,
    )
    assert tuned.train_cfg.max_epochs == 30
    for cfg, size in ((scratch, 256), (tuned, 512)):
        (crop,) = (t for t in cfg.test_dataloader.dataset.pipeline if t.type == 'CenterCrop')
        (resize,) = (t for t in cfg.test_dataloader.dataset.pipeline if t.type == 'ResizeEdge')
        assert (crop.crop_size, resize.scale) == (size, int(256 / 224 * size))
        (crop,) = (
            t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'RandomResizedCrop'
        )
        assert crop.scale == size


@pytest.mark.parametrize('name', ['mask_rcnn', 'cascade_mask_rcnn'])
def test_window_16_recipes_on_coco(name):
    cfg = load(f'detection/{name}_swinv2_tiny_w16_3x_coco.py')
    backbone = cfg.model.backbone
    assert (backbone.window_size, backbone.pretrained_window_sizes) == (16, 8)
    assert backbone.init_cfg.checkpoint == CHECKPOINT
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05
    )
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.end, steps.milestones, steps.end) == (1000, [27, 33], 36)
    assert cfg.train_cfg.max_epochs == 36
    assert cfg.auto_scale_lr.base_batch_size == 16
    choice = next(t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'RandomChoice')
    resize, crop = choice.transforms
    assert [t.type for t in resize] == ['RandomChoiceResize']
    assert [t.type for t in crop] == ['RandomChoiceResize', 'RandomCrop', 'RandomChoiceResize']
    if name == 'cascade_mask_rcnn':
        assert cfg.model.rpn_head.loss_bbox == dict(
            type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0
        )
        assert cfg.model.train_cfg.rpn_proposal.max_per_img == 2000
        assert [r.assigner.pos_iou_thr for r in cfg.model.train_cfg.rcnn] == [0.5, 0.6, 0.7]
        heads = cfg.model.roi_head.bbox_head
        assert [head.bbox_coder.target_stds[::2] for head in heads] == [
            [0.1, 0.2],
            [0.05, 0.1],
            [0.033, 0.067],
        ]
        assert {head.loss_bbox.type for head in heads} == {'GIoULoss'}
    sides = {min(scale) for scale in resize[0].scales}
    assert (min(sides), max(sides), len(sides)) == (480, 800, 11)
    assert {max(scale) for scale in resize[0].scales} == {1333}


@pytest.mark.parametrize('name', [name for name in ALL if name.endswith(('ade20k.py', 'coco.py'))])
def test_only_weights_decay_and_not_those_of_the_position_bias(name):
    cfg = load(name)
    model = build(cfg)
    from mmengine.optim import build_optim_wrapper

    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    decays = {
        id(parameter): group['weight_decay'] > 0
        for group in groups
        for parameter in group['params']
    }
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim == 1 or 'cpb_mlp' in name or 'logit_scale' in name
        assert decays[id(parameter)] == (not exempt), name


@pytest.mark.parametrize(
    ('document', 'toolbox', 'base'),
    [
        ('README.md', 'mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
        ('docs/usage.md', 'mmdet', 'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'),
        (
            'docs/usage.md',
            'mmseg',
            'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        ),
    ],
)
def test_snippet_works_when_pasted(tmp_path, document, toolbox, base):
    module = pytest.importorskip(toolbox)
    snippet = (CONFIGS.parent / document).read_text().split('```python\n')[1].split('```')[0]
    path = tmp_path / 'config.py'
    base = Path(module.__file__).parent / '.mim/configs' / base
    path.write_text(f"_base_ = '{base}'\n{snippet}")
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.init_cfg.checkpoint == CHECKPOINT
    model = build(cfg)
    assert model.backbone.out_channels == (96, 192, 384, 768)
    assert len(model.extract_feat(torch.rand(1, 3, 64, 64))) >= 4
