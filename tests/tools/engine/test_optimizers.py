"""Fused and 8-bit AdamW update as torch's plain AdamW does; accumulated batches as one batch."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import OPTIMIZERS

from tests.helpers.models import SMALL_ARCH, randomize_parameters
from tests.helpers.tolerance import assert_equal_to_rounding
from tests.helpers.toy_training import config, optimizer, run
from tools.engine.optimizers import KINDS, use_adamw
from tools.utils.errors import UserError

PARAMWISE = {
    'swinv2_backbone.SwinV2LayerDecayConstructor': dict(layer_decay_rate=0.5),
    'DefaultOptimWrapperConstructor': dict(
        norm_decay_mult=0.0, custom_keys=dict(cpb_mlp=dict(decay_mult=0.0))
    ),
}
needs_bitsandbytes = pytest.mark.skipif(
    OPTIMIZERS.get('AdamW8bit') is None, reason='bitsandbytes is not installed'
)


def wrapper(model, constructor, kind=None, **optimizer):
    optimizer = dict(type='AdamW', lr=0.1, weight_decay=0.05, **optimizer)
    cfg = Config(
        dict(
            optim_wrapper=dict(
                type='OptimWrapper',
                optimizer=optimizer,
                constructor=constructor,
                paramwise_cfg=PARAMWISE[constructor],
            )
        )
    )
    if kind:
        use_adamw(cfg, kind)
    return build_optim_wrapper(model, cfg.optim_wrapper)


def updated(model, constructor, kind, steps):
    """The weights of a copy of a model after some steps."""
    model = copy.deepcopy(model)
    made = wrapper(model, constructor, kind)
    image = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        maps = model(image.to(model.patch_embed.proj.weight.dtype))
        made.update_params(sum(out.square().mean() for out in maps))
    return dict(model.named_parameters()), made.optimizer


@pytest.mark.parametrize('constructor', PARAMWISE)
def test_fused_adamw_is_adamw(small, constructor):
    model = small().double().train()
    plain, _ = updated(model, constructor, None, steps=3)
    fused, made = updated(model, constructor, 'fused', steps=3)
    assert all(group['fused'] for group in made.param_groups)
    assert_equal_to_rounding(fused, plain)


@needs_bitsandbytes
@pytest.mark.parametrize('constructor', PARAMWISE)
def test_first_step_of_8bit_adamw_is_that_of_adamw(small, constructor):
    """Moments are rounded after a step, so the first uses exact ones.

    Both compute p (1 - lr d) - lr m / (sqrt(v) + eps) in a dozen roundings, each of at most u times
    the magnitude of what it rounds, which is at most |p| + lr, since |m| <= sqrt(v) in this step.
    """
    model = small().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain, _ = updated(model, constructor, None, steps=1)
    low, made = updated(model, constructor, '8bit', steps=1)
    unit = torch.finfo(torch.float32).eps / 2
    for name, parameter in low.items():
        bound = 16 * unit * (before[name].abs() + 0.1)
        assert ((parameter - plain[name]).abs() <= bound).all(), name
        assert not torch.equal(parameter, before[name]), name
    saved = made.state_dict()['state']
    assert any(
        tensor.dtype == torch.uint8
        for state in saved.values()
        for tensor in state.get('__bnb_optimizer_quant_state__', {}).values()
        if isinstance(tensor, torch.Tensor)
    )


def test_other_optimizers_and_a_missing_library_are_refused(monkeypatch):
    for kind in KINDS:
        cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=1))))
        with pytest.raises(UserError, match=f"--optimizer {kind}: .* is 'SGD', allowed: 'AdamW'"):
            use_adamw(cfg, kind)
    monkeypatch.setattr(OPTIMIZERS, 'get', lambda name: None)
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1))))
    with pytest.raises(UserError, match='pip install bitsandbytes'):
        use_adamw(cfg, '8bit')


@pytest.mark.parametrize('constructor', PARAMWISE)
def test_accumulated_batches_equal_one_batch(small, constructor):
    """Of a model without statistics of a batch. The last update is of the two that are left."""
    model = randomize_parameters(small(arch=SMALL_ARCH)).double().train()
    images = torch.randn(5, 3, 40, 56).double()

    def train(batches, accumulated):
        own = copy.deepcopy(model)
        made = wrapper(own, constructor)
        made._accumulative_counts = accumulated
        made.initialize_count_status(own, 0, len(batches))
        for batch in batches:
            with made.optim_context(own):
                loss = sum(out.square().mean() for out in own(batch))
            made.update_params(loss)
        return dict(own.named_parameters())

    one_by_one = train(images.split(1), 3)
    assert_equal_to_rounding(one_by_one, train([images[:3], images[3:]], 1))


def test_checkpoints_of_fused_adamw_resume(tmp_path):
    """With the log of what the checkpoint overrules, were the implementation another."""
    settings = optimizer(type='AdamW', fused=True)
    del settings['optimizer']['momentum']
    run(config(tmp_path, until=4, optim_wrapper=settings))
    cfg = config(tmp_path, until=6, optim_wrapper=settings)
    log = run(cfg, resume=tmp_path / 'iter_4.pth')
    assert 'resumed epoch: 0, iter: 4' in log
    assert 'overrules' not in log
    assert (tmp_path / 'iter_6.pth').exists()
