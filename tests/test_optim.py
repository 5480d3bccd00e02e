"""Layer-wise decay: the learning rate and weight decay of each parameter."""

import copy
import logging

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.optim import describe
from tests.helpers.models import SMALL_ARCH, randomize_parameters
from tests.helpers.tolerance import assert_equal_to_rounding

RATE = 0.5
CONSTRUCTOR = 'swinv2_backbone.SwinV2LayerDecayConstructor'


class Segmentor(nn.Module):
    """A model as in the toolboxes: a backbone, and a head with a convolution and a norm."""

    def __init__(self, **kwargs):
        super().__init__()
        self.backbone = SwinTransformerV2(**{'arch': SMALL_ARCH, **kwargs})
        self.head = nn.Sequential(nn.Conv2d(16, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x):
        maps = self.backbone(x)
        return self.head(maps[0]).relu().mean() + sum(out.square().mean() for out in maps[1:])


def wrapper(model, paramwise=None, constructor=CONSTRUCTOR, **optimizer):
    optimizer = {'type': 'AdamW', 'lr': 0.1, 'weight_decay': 0.05, **optimizer}
    return build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=optimizer,
            constructor=constructor,
            paramwise_cfg=paramwise or dict(layer_decay_rate=RATE),
        ),
    )


def by_name(model, groups):
    """Name of each parameter to its group, and that each has exactly one."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[parameter]: group for group in groups for parameter in group['params']}
    assert sum(len(group['params']) for group in groups) == len(found)
    return found


def test_rates_and_decay_of_every_parameter():
    model = Segmentor()
    found = by_name(model, wrapper(model).optimizer.param_groups)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, group in found.items():
        layer, count = model.backbone.get_layer_depth(name, 'backbone.')
        assert count == 10
        assert group['lr'] == pytest.approx(0.1 * RATE ** (9 - layer)), name
        exempt = (
            name.endswith('bias')
            or 'norm' in name
            or 'cpb_mlp' in name
            or 'logit_scale' in name
            or name == 'head.1.weight'
        )
        assert group['weight_decay'] == (0 if exempt else 0.05), name
    assert [
        found[f'backbone.{name}']['lr_scale']
        for name in ('norm3.weight', 'layers.3.blocks.1.norm1.weight', 'patch_embed.proj.weight')
    ] == [1, RATE, RATE**9]


def test_the_printed_table(caplog, monkeypatch):
    model = nn.Sequential()
    model.add_module(
        'backbone',
        SwinTransformerV2(
            arch=dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1,) * 4), out_indices=(0,)
        ),
    )
    model.add_module('head', nn.Linear(8, 2))
    printed = []
    monkeypatch.setattr(
        'swinv2_backbone.optim.print_log', lambda text, logger, **_: printed.append((text, logger))
    )
    groups = wrapper(model).optimizer.param_groups
    assert printed == [(describe(groups), 'current')]
    lines = [line.split() for line in printed[0][0].splitlines()]
    assert lines[0] == ['layer-wise', 'decay', 'of', 'the', 'learning', 'rate']
    assert lines[1] == ['lr', 'scale', 'lr', 'weight', 'decay', 'tensors', 'parameters', 'group']
    # Patch embed: 8 x 3 x 4 x 4 weights; bias, norm. Block: qkv 192, proj 64, MLP 2 x 256;
    # biases 8 + 8 + 8 + 32 + 8, norms 32, logit_scale 1, cpb_mlp 1024 + 512 + 512.
    assert lines[2:] == [
        ['0.2500', '0.025', '0', '3', '24', 'backbone', 'layer', '0'],
        ['0.2500', '0.025', '0.05', '1', '384', 'backbone', 'layer', '0'],
        ['0.5000', '0.05', '0', '13', '2,145', 'backbone', 'layer', '1'],
        ['0.5000', '0.05', '0.05', '4', '768', 'backbone', 'layer', '1'],
        ['1.0000', '0.1', '0', '2', '16', 'backbone', 'layer', '2'],
        ['1.0000', '0.1', '0', '1', '2', 'others'],
        ['1.0000', '0.1', '0.05', '1', '16', 'others'],
    ]


def test_rate_1_is_adamw_with_the_options_of_the_configs():
    by_config_cfg = dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            key: dict(decay_mult=0.0) for key in ('q_bias', 'v_bias', 'cpb_mlp', 'logit_scale')
        },
    )
    torch.manual_seed(3)
    ours = randomize_parameters(Segmentor(drop_path_rate=0.0)).double()
    by_config = copy.deepcopy(ours)
    before = copy.deepcopy(ours.state_dict())
    image = torch.randn(2, 3, 64, 64).double()
    for model, optim in (
        (ours, wrapper(ours, dict(layer_decay_rate=1), lr=1e-3)),
        (by_config, wrapper(by_config, by_config_cfg, 'DefaultOptimWrapperConstructor', lr=1e-3)),
    ):
        for _ in range(3):
            optim.update_params(model(image))
    assert_equal_to_rounding(dict(ours.named_parameters()), dict(by_config.named_parameters()))
    for name, parameter in ours.backbone.named_parameters():
        assert not torch.equal(parameter, before[f'backbone.{name}']), name


def test_options_of_mmengine_apply_on_top():
    model = Segmentor(frozen_stages=1)
    found = by_name(
        model,
        wrapper(
            model,
            dict(
                layer_decay_rate=RATE,
                custom_keys={
                    'head': dict(lr_mult=10),
                    'layers.3': dict(lr_mult=2),
                    'cpb_mlp': dict(decay_mult=0.5),
                },
            ),
        ).optimizer.param_groups,
    )
    assert not any(
        name.startswith(('backbone.patch_embed', 'backbone.layers.0', 'backbone.norm0'))
        for name in found
    ), 'what is frozen is not trained'
    assert found['head.0.weight']['lr'] == pytest.approx(1.0)
    assert found['head.0.weight']['weight_decay'] == 0.05
    assert found['backbone.layers.3.blocks.1.mlp.fc1.weight']['lr'] == pytest.approx(0.2 * RATE)
    assert found['backbone.layers.3.blocks.1.mlp.fc1.weight']['weight_decay'] == 0.05
    # A custom key changes the rate; that nothing of these decays stays.
    for name in ('head.0.bias', 'head.1.weight', 'head.1.bias'):
        assert found[name]['weight_decay'] == 0, name
        assert found[name]['lr'] == pytest.approx(1.0)
    assert found['backbone.layers.3.blocks.1.norm1.weight']['weight_decay'] == 0
    assert found['backbone.layers.3.blocks.1.attn.q_bias']['weight_decay'] == 0
    assert found['backbone.layers.2.blocks.1.attn.cpb_mlp.0.weight']['weight_decay'] == 0.025


def test_rules_by_kind_are_mmengines_where_they_are_given():
    model = Segmentor()
    found = by_name(
        model,
        wrapper(
            model, dict(layer_decay_rate=RATE, norm_decay_mult=1.0, bias_decay_mult=0.5)
        ).optimizer.param_groups,
    )
    for name, decay in (
        ('head.1.weight', 0.05),
        ('head.0.bias', 0.025),
        ('backbone.layers.3.blocks.1.norm1.weight', 0.05),
        ('backbone.layers.3.blocks.1.mlp.fc1.bias', 0.025),
        ('backbone.layers.3.blocks.1.attn.q_bias', 0),
        ('backbone.layers.3.blocks.1.attn.cpb_mlp.0.bias', 0),
    ):
        assert found[name]['weight_decay'] == pytest.approx(decay), name


def test_shared_parameters_require_bypass_duplicate():
    model = Segmentor()
    model.head[0].weight = model.shared = nn.Parameter(torch.zeros(4, 16, 1, 1))
    with pytest.raises(ValueError, match='shared: is shared by several modules; with bypass'):
        wrapper(model)
    optim = wrapper(model, dict(layer_decay_rate=RATE, bypass_duplicate=True))
    assert (
        sum(
            parameter is model.shared
            for group in optim.optimizer.param_groups
            for parameter in group['params']
        )
        == 1
    )


def test_schedulers_keep_the_scale():
    from mmengine.optim import MultiStepLR

    model = Segmentor()
    optim = wrapper(model)
    before = [group['lr'] for group in optim.optimizer.param_groups]
    scheduler = MultiStepLR(optim, milestones=[1], gamma=0.1)
    optim.update_params(model(torch.randn(2, 3, 32, 32)))
    scheduler.step()
    after = [group['lr'] for group in optim.optimizer.param_groups]
    assert after == pytest.approx([rate / 10 for rate in before])
    assert optim.get_lr()['base_lr'] == [pytest.approx(0.01)]  # What mmengine's logs show.


def test_a_parameter_without_a_layer_is_refused():
    model = Segmentor()
    model.backbone.register_parameter('prompt', nn.Parameter(torch.zeros(1, 4)))
    with pytest.raises(ValueError, match='prompt: is in no layer of a SwinTransformerV2'):
        wrapper(model)


def test_a_model_without_the_backbone_is_refused():
    with pytest.raises(ValueError, match=r'the model \(Linear\) has no SwinTransformerV2'):
        wrapper(nn.Linear(3, 4))


@pytest.mark.parametrize(
    ('paramwise', 'optimizer', 'message'),
    [
        ({}, {}, r"paramwise_cfg\['layer_decay_rate'\]: got None, allowed: a number above 0"),
        (dict(layer_decay_rate=0), {}, 'got 0, allowed: a number above 0 and at most 1'),
        (dict(layer_decay_rate=1.5), {}, 'got 1.5'),
        (dict(layer_decay_rate='0.9'), {}, "got '0.9'"),
        (dict(layer_decay_rate=0.9, decay_rate=0.9), {}, r"got the keys \['decay_rate'\], allowed"),
        (dict(layer_decay_rate=0.9), dict(weight_decay=None), 'optimizer: got no weight_decay'),
    ],
)
def test_wrong_options_are_refused(paramwise, optimizer, message):
    with pytest.raises(ValueError, match=message):
        wrapper(Segmentor(), {'norm_decay_mult': 0.0, **paramwise}, **optimizer)


def test_the_constructor_of_mmpretrain_gives_the_same_rates():
    pytest.importorskip('mmpretrain')
    from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
    from mmpretrain.models import ImageClassifier

    model = ImageClassifier(
        backbone=dict(type='swinv2_backbone.SwinTransformerV2', arch=SMALL_ARCH, out_indices=(3,)),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=128),
    )
    build = LearningRateDecayOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05)),
        dict(layer_decay_rate=RATE),
    )
    theirs = by_name(model, build(model).optimizer.param_groups)
    ours = by_name(model, wrapper(model).optimizer.param_groups)
    assert len(ours) == len(list(model.parameters()))
    assert {name: group['lr'] for name, group in ours.items()} == pytest.approx(
        {name: group['lr'] for name, group in theirs.items()}
    )


@pytest.mark.parametrize(
    ('toolbox', 'config'),
    [
        ('mmseg', 'segmentation/upernet_swinv2_tiny_w16_ade20k.py'),
        ('mmdet', 'detection/mask_rcnn_swinv2_tiny_w16_3x_coco.py'),
    ],
)
def test_rates_in_a_model_of_a_toolbox(toolbox, config):
    pytest.importorskip(toolbox)
    from tests.test_configs import build, load

    cfg = load(config)
    model = build(cfg)
    logging.disable(logging.INFO)
    try:
        optim = build_optim_wrapper(
            model,
            dict(
                type='OptimWrapper',
                optimizer=cfg.optim_wrapper.optimizer,
                constructor=CONSTRUCTOR,
                paramwise_cfg=dict(layer_decay_rate=0.95),
            ),
        )
    finally:
        logging.disable(logging.NOTSET)
    found = by_name(model, optim.optimizer.param_groups)
    lr = cfg.optim_wrapper.optimizer.lr
    for name, group in found.items():
        inside = name.startswith('backbone.') and not name.startswith('backbone.norm')
        assert (group['lr'] < lr) == inside, name
    assert found['backbone.patch_embed.proj.weight']['lr'] == pytest.approx(lr * 0.95**13)
