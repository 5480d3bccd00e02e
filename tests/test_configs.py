"""Every config builds, downloads only what it should, and has the schedule it claims."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from swinv2_backbone.checkpoints.releases import resolve

CONFIGS = Path(__file__).parents[1] / 'configs'
ALL = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob('[!_]*/*.py'))
RELEASE = 'swinv2://swinv2_{}_patch4_window8_256'
CHECKPOINT = RELEASE.format('tiny')
FINE_TUNED = [n for n in ALL if n.endswith(('_coco.py', '_ade20k.py', '_cityscapes.py'))]


def load(name):
    return Config.fromfile(CONFIGS / name)


def build(cfg, device='cpu'):
    """The model of a config; skips where its toolbox is missing."""
    pytest.importorskip(cfg.default_scope)
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope(cfg.default_scope)
    with torch.device(device), MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        return registry.build(cfg.model)


@pytest.mark.parametrize('name', ALL)
def test_builds_with_our_backbone(name):
    from swinv2_backbone import SwinTransformerV2

    model = build(load(name), 'meta')
    assert isinstance(model.backbone, SwinTransformerV2)
    heads = [
        head
        for head in (getattr(model, 'decode_head', None), getattr(model, 'auxiliary_head', None))
        if head is not None
    ]
    classes = len(load(name).val_dataloader.dataset.get('metainfo', {}).get('classes', ()))
    for head in heads:
        assert head.num_classes == (classes or (19 if 'cityscapes' in name else 150))


@pytest.mark.parametrize('name', ALL)
def test_only_configs_for_fine_tuning_download_weights(name):
    backbone = load(name).model.backbone
    if name not in FINE_TUNED and not name.endswith('_w16_in1k.py'):
        assert backbone.init_cfg is None
        return
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=RELEASE.format(backbone.arch))
    assert resolve(backbone.init_cfg.checkpoint).startswith('https://')
    assert backbone.pretrained_window_sizes == 8


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


def test_window_16_recipe_on_ade20k_at_640():
    cfg, at_512 = (load(f'segmentation/upernet_swinv2_tiny_w16{s}_ade20k.py') for s in ('_640', ''))
    assert cfg.optim_wrapper == at_512.optim_wrapper
    (resize,) = (s for s in cfg.test_dataloader.dataset.pipeline if s.type == 'Resize')
    assert resize.scale == (2560, 640)
    resizes = cfg.tta_pipeline[1].transforms[0]
    assert [step.scale[1] for step in resizes] == [320, 480, 640, 800, 960, 1120]


@pytest.mark.parametrize(
    ('name', 'lr', 'weight_decay', 'others'),
    [
        ('detection/retinanet_swinv2_tiny_coco.py', 1e-4, 1e-4, 1),
        ('detection/atss_swinv2_tiny_3x_coco.py', 1e-4, 0.05, 1),
        ('detection/dino_swinv2_tiny_coco.py', 1e-5, 1e-4, 10),
        ('detection/mask2former_swinv2_tiny_coco.py', 1e-5, 0.05, 10),
        ('segmentation/mask2former_swinv2_tiny_ade20k.py', 1e-5, 0.05, 10),
        ('segmentation/segformer_swinv2_tiny_ade20k.py', 6e-5, 0.01, 10),
        ('segmentation/upernet_swinv2_tiny_cityscapes.py', 6e-5, 0.01, 1),
    ],
)
def test_rates_and_decay_of_the_recipes(name, lr, weight_decay, others):
    """Of the weights of the backbone, and how many times that rate the rest of the model has."""
    cfg = load(name)
    model = build(cfg, 'meta')
    from mmengine.optim import build_optim_wrapper

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {True: set(), False: set()}
    for group in build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups:
        for parameter in group['params']:
            rates[names[id(parameter)].startswith('backbone.')].add(group['lr'])
            assert group['weight_decay'] in (0, weight_decay)
    assert [*rates[True]] == pytest.approx([lr])
    assert [*rates[False]] == pytest.approx([lr * others])


def test_cityscapes_is_tested_by_overlapping_windows_of_the_crop():
    test_cfg = load('segmentation/upernet_swinv2_tiny_cityscapes.py').model.test_cfg
    assert test_cfg == dict(mode='slide', crop_size=(512, 1024), stride=(384, 768))


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


@pytest.mark.parametrize('name', FINE_TUNED)
def test_only_weights_decay_and_not_those_of_the_position_bias(name):
    cfg = load(name)
    model = build(cfg, 'meta')
    from mmengine.optim import build_optim_wrapper

    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    decays = {
        id(parameter): group['weight_decay'] > 0
        for group in groups
        for parameter in group['params']
    }
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim == 1 or 'cpb_mlp' in name or 'logit_scale' in name
        if 'Mask2Former' in str(cfg.model):
            exempt |= any(key in name for key in ('query_embed', 'query_feat', 'level_embed'))
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
