"""Attempts to make the cached constants of the attentions stale, by the rule that holds on a GPU.

There, values are not compared, which would make the host wait: the cache goes by what torch and
OpenMMLab tell of a change.
"""

import copy

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers import attention
from tests.helpers.models import SMALL_ARCH, randomize_parameters

ARCH = {**SMALL_ARCH, 'depths': (2, 1, 1, 1)}
IMAGE = torch.linspace(-1, 1, 3 * 40 * 40).view(1, 3, 40, 40)
WEIGHT = 'layers.0.blocks.1.attn.cpb_mlp.2.weight'


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(attention, '_cheap_to_compare', lambda _: False)


@pytest.fixture
def model():
    model = SwinTransformerV2(ARCH, drop_path_rate=0.0, out_indices=(0, 1))
    return randomize_parameters(model).eval()


@torch.no_grad()
def maps(model):
    return torch.cat([out.flatten() for out in model(IMAGE)])


def is_current(model):
    """Whether the maps are those of a copy of the model, which has no caches."""
    return torch.equal(maps(model), maps(copy.deepcopy(model)))


def parameters(model):
    return [p for name, p in model.named_parameters() if '.attn.' in name]


def other_state(model):
    return {name: p + 0.1 for name, p in model.state_dict().items()}


def step(optimizer, **options):
    def change(model):
        """A training step, in eval mode."""
        optimizer_ = optimizer(model.parameters(), lr=0.1, **options)
        sum(out.square().mean() for out in model(IMAGE)).backward()
        optimizer_.step()

    return change


@torch.no_grad()
def add(model):
    for p in parameters(model):
        p.add_(0.1)


@torch.inference_mode()
def add_in_inference_mode(model):
    for p in parameters(model):
        p.add_(0.1)


@torch.no_grad()
def foreach_add(model):
    torch._foreach_add_(parameters(model), 0.1)


@torch.no_grad()
def lerp_detached(model):
    for p in parameters(model):
        p.detach().lerp_(torch.zeros_like(p), 0.1)


def replace_data(model):
    for p in parameters(model):
        p.data = p.data + 0.1


def replace_data_and_return(model):
    """As what offloads weights: the first memory comes back, with other values."""
    before = [p.data for p in parameters(model)]
    replace_data(model)
    maps(model)
    for p, memory in zip(parameters(model), before, strict=True):
        p.data = memory.add_(0.1)


def replace_parameters(model):
    for name, _ in list(model.named_parameters()):
        owner, _, leaf = name.rpartition('.')
        old = model.get_parameter(name)
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(old.detach() + 0.1))


def swap_tensors(model):
    for p in parameters(model):
        torch.utils.swap_tensors(p, torch.nn.Parameter(p.detach() + 0.1))


def swap_on_conversion(model):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.load_state_dict(other_state(model))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def update_average(model):
    """As an EMA of torch, in place of the model itself."""
    average = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    other = copy.deepcopy(model)
    add(other)
    average.update_parameters(other)
    model.load_state_dict(average.module.state_dict())


def write_data_then_eval(model):
    for p in parameters(model):
        p.data.add_(0.1)
    model.eval()


def write_data_then_clear(model):
    for p in parameters(model):
        p.data.add_(0.1)
    model.clear_caches()


def train_through_data(model):
    """An optimizer of one's own, on a model that stays in eval mode."""
    sum(out.mean() for out in model(IMAGE)).backward()
    for p in parameters(model):
        p.data.add_(0.1)


CHANGES = {
    'in place': add,
    'in inference mode': add_in_inference_mode,
    'foreach': foreach_add,
    'through detach()': lerp_detached,
    'AdamW foreach': step(torch.optim.AdamW, foreach=True),
    'AdamW fused': step(torch.optim.AdamW, fused=True),
    'SGD fused': step(torch.optim.SGD, fused=True),
    'SGD one by one': step(torch.optim.SGD, foreach=False),
    'load_state_dict': lambda model: model.load_state_dict(other_state(model)),
    'load_state_dict(assign=True)': lambda model: model.load_state_dict(
        other_state(model), assign=True
    ),
    'load_state_dict that swaps': swap_on_conversion,
    'load_state_dict of a stage': lambda model: model.layers[0].load_state_dict(
        other_state(model.layers[0])
    ),
    'an average of weights': update_average,
    'data replaced': replace_data,
    'data replaced and returned': replace_data_and_return,
    'parameters replaced': replace_parameters,
    'swap_tensors': swap_tensors,
    'double, float': lambda model: model.double().apply(add).float(),
    'window size': lambda model: model.set_window_size(4),
    'data, then eval()': write_data_then_eval,
    'data, then clear_caches()': write_data_then_clear,
    'data, after a gradient': train_through_data,
}


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_no_change_of_weights_is_missed(model, change):
    before = maps(model)
    assert torch.equal(maps(model), before)
    change(model)
    assert not torch.equal(maps(model), before)
    assert is_current(model)


def test_half_precision_and_back(model):
    before = maps(model)
    half = maps(model.bfloat16().float())
    assert not torch.equal(half, before)
    assert is_current(model)


def test_functional_call_and_copies_leave_the_cache_alone(model):
    before, new = maps(model), {WEIGHT: model.get_parameter(WEIGHT).detach() + 0.1}
    other = copy.deepcopy(model)
    with torch.no_grad():
        called = torch.cat([out.flatten() for out in functional_call(model, new, (IMAGE,))])
        other.get_parameter(WEIGHT).add_(0.1)
    assert torch.equal(called, maps(other))
    assert torch.equal(maps(model), before)


def write_data(model):
    for p in parameters(model):
        p.data.add_(0.1)


def step_fused(model):
    """After a call without gradients between the one with gradients and the step."""
    sum(out.square().mean() for out in model(IMAGE)).backward()
    maps(model)
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()


@pytest.mark.parametrize('change', [write_data, step_fused])
def test_what_torch_does_not_tell_is_missed(model, change):
    """What the docstring of clear_caches() warns of: not wanted, but should be known."""
    maps(model)
    change(model)
    assert not is_current(model)
    model.clear_caches()
    assert is_current(model)


# --- mmengine's EMAHook ---------------------------------------------------------------------------


class Judge(BaseModel):
    """A model that tells in its predictions whether the maps are of the present weights."""

    def __init__(self):
        super().__init__()
        self.backbone = SwinTransformerV2(ARCH, drop_path_rate=0.0, out_indices=(0, 1))
        randomize_parameters(self.backbone)

    def forward(self, image, mode='tensor'):
        if mode == 'loss':
            return dict(loss=sum(out.square().mean() for out in self.backbone(image)))
        weight = self.backbone.get_parameter(WEIGHT).detach().clone()
        return [(is_current(self.backbone), weight)]


class Collect(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.extend(data_samples)

    def compute_metrics(self, results):
        seen.extend(results)
        return {}


seen: list = []


def run_with_ema(tmp_path, *hooks):
    """A runner after four iterations with two validations, and its backbone."""
    loader = dict(
        batch_size=1,
        dataset=[dict(image=IMAGE[0])] * 2,
        sampler=dict(type='DefaultSampler'),
        collate_fn=dict(type='default_collate'),
    )
    seen.clear()
    model = Judge()
    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=loader,
        val_dataloader=loader,
        test_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=4, val_interval=2),
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=Evaluator(Collect(prefix='')),
        test_evaluator=Evaluator(Collect(prefix='')),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.5)),
        custom_hooks=[dict(type=hook) for hook in hooks],
        default_hooks=dict(checkpoint=None, logger=None),
        log_level='ERROR',
    )
    runner.train()
    return runner, model.backbone


def test_validation_and_test_use_the_swapped_weights(tmp_path):
    """EMAHook swaps before each, through ``data``. mmengine calls eval() after that."""
    runner, backbone = run_with_ema(tmp_path, 'EMAHook')
    trained = backbone.get_parameter(WEIGHT).detach().clone()
    runner.test()
    assert len(seen) == 2 * (2 + 1)
    assert all(current for current, _ in seen)
    # (For a test, EMAHook begins again with a copy of the model.)
    assert not any(torch.equal(weight, trained) for _, weight in seen[:4]), 'no EMA weights'
    assert torch.equal(backbone.get_parameter(WEIGHT), trained), 'not swapped back'


@pytest.mark.parametrize('hook', ['ClearCachesHook', 'swinv2_backbone.ClearCachesHook'])
def test_the_hook_clears_the_caches_when_weights_are_swapped_back(tmp_path, hook):
    _, without = run_with_ema(tmp_path, 'EMAHook')
    assert not is_current(without)
    for hooks in (('EMAHook', hook), (hook, 'EMAHook')):
        runner, backbone = run_with_ema(tmp_path, *hooks)
        assert is_current(backbone)
        runner.call_hook('after_test_epoch', metrics={})  # Which swaps, too.
        assert is_current(backbone)
