"""Every config builds, resolves without downloads where it must, and trains what it says."""

from pathlib import Path

import pytest
from mmengine.config import Config

from swinv2_backbone.releases import resolve

CONFIGS = Path(__file__).parents[1] / 'configs'
ALL = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob('[!_]*/*.py'))
CHECKPOINT = 'swinv2://swinv2_tiny_patch4_window8_256'


def load(name):
    return Config.fromfile(CONFIGS / name)


def build(cfg):
    """The detector or segmentor of a config."""
    toolbox = pytest.importorskip(cfg.default_scope)
    assert toolbox
    from mmengine.registry import MODELS, init_default_scope
    init_default_scope(cfg.default_scope)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        return registry.build(cfg.model)


@pytest.mark.parametrize('name', ALL)
def test_builds_with_our_backbone(name):
    from swinv2_backbone import SwinTransformerV2
    model = build(load(name))
    assert isinstance(model.backbone, SwinTransformerV2)
    heads = [head for head in (getattr(model, 'decode_head', None),
                               getattr(model, 'auxiliary_head', None)) if head is not None]
    classes = len(load(name).val_dataloader.dataset.get('metainfo', {}).get('classes', ()))
    for head in heads:
        assert head.num_classes == (classes or 150)


@pytest.mark.parametrize('name', ALL)
def test_only_the_real_configs_download(name):
    text = load(name).pretty_text
    assert (CHECKPOINT in text) == name.endswith(('_ade20k.py', '_coco.py'))


def test_checkpoints_are_named_once_and_by_release():
    texts = [path.read_text() for path in CONFIGS.rglob('*.py')]
    assert sum('://' in line for text in texts for line in text.splitlines()
               if not line.startswith('#')) == 1
    assert sum(text.count(CHECKPOINT) for text in texts) == 1
    assert resolve(CHECKPOINT).startswith('https://')


@pytest.mark.parametrize('name', ALL)
def test_no_config_leans_on_another_package(name):
    text = (CONFIGS / name).read_text()
    assert 'mmdet::' not in text
    assert 'mmseg::' not in text


def test_ade20k_recipe():
    cfg = load('segmentation/upernet_swinv2_tiny_ade20k.py')
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01)
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
        type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.start_factor, warm_up.end) == (0.001, 1000)
    assert steps.milestones == [8, 11]
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.model.backbone.drop_path_rate == 0.2
    assert cfg.val_evaluator.metric == ['bbox', 'segm']


@pytest.mark.parametrize('name', [name for name in ALL if name.endswith(('ade20k.py', 'coco.py'))])
def test_what_decays_in_the_whole_model(name):
    cfg = load(name)
    model = build(cfg)
    from mmengine.optim import build_optim_wrapper
    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    decays = {id(group['params'][0]): group['weight_decay'] > 0 for group in groups}
    for name, parameter in model.named_parameters():
        exempt = (parameter.ndim == 1 or 'cpb_mlp' in name or 'logit_scale' in name)
        assert decays[id(parameter)] == (not exempt), name


@pytest.mark.parametrize(('toolbox', 'base'), [
    ('mmdet', 'configs/swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'),
    ('mmseg', 'configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'),
])
def test_readme_snippet_works_when_pasted(tmp_path, toolbox, base):
    module = pytest.importorskip(toolbox)
    readme = (CONFIGS.parent / 'README.md').read_text()
    snippet = readme.split('```python\n')[1].split('```')[0]
    path = tmp_path / 'config.py'
    path.write_text(f"_base_ = '{Path(module.__file__).parent / '.mim' / base}'\n{snippet}")
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.init_cfg.checkpoint == CHECKPOINT
    assert build(cfg).backbone.out_channels == (96, 192, 384, 768)
