"""The attention module: parameters, the clamped scale, the cached position bias."""

import copy
import math

import pytest
import torch

from swinv2_backbone.layers.attention import WindowAttention, logit_factor
from swinv2_backbone.layers.windows import WindowGrid
from tests.helpers.models import randomize_parameters
from tests.helpers.tolerance import assert_equal_to_rounding

WINDOW = (4, 4)


@pytest.fixture
def attention():
    return randomize_parameters(WindowAttention(16, 4)).eval()


def test_scale_is_clamped_at_100():
    scales = logit_factor(torch.tensor([4.6, math.log(100), 9.0], dtype=torch.float64))
    assert_equal_to_rounding(scales, torch.tensor([math.exp(4.6), 100, 100], dtype=torch.float64))


def test_key_has_no_bias(attention):
    names = {name for name, _ in attention.named_parameters()}
    assert names == {
        'logit_scale',
        'q_bias',
        'v_bias',
        'cpb_mlp.0.weight',
        'cpb_mlp.0.bias',
        'cpb_mlp.2.weight',
        'qkv.weight',
        'proj.weight',
        'proj.bias',
    }


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_logits_stay_in_float32_under_autocast(attention, dtype, monkeypatch):
    monkeypatch.setenv('SWINV2_ATTENTION', 'reference')
    seen = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(
        torch.Tensor, 'softmax', lambda x, dim: seen.append(x.dtype) or softmax(x, dim)
    )
    with torch.autocast('cpu', dtype):
        attention(torch.randn(2, 4, 4, 16), WindowGrid.for_map((4, 4), WINDOW, False), (8, 8))
    assert seen == [torch.float32]


# Ways to change the weights of the position bias.
CHANGES = {
    'load_state_dict': lambda m, new: m.load_state_dict(
        {**m.state_dict(), 'cpb_mlp.2.weight': new}
    ),
    'param.data written in place (mmengine EMAHook)': lambda m, new: m.cpb_mlp[2].weight.data.copy_(
        new
    ),
    'param.data replaced': lambda m, new: setattr(m.cpb_mlp[2].weight, 'data', new),
    'parameter replaced': lambda m, new: setattr(m.cpb_mlp[2], 'weight', torch.nn.Parameter(new)),
    'in place': lambda m, new: m.cpb_mlp[2].weight.copy_(new),
    'double()': lambda m, new: m.double(),
}


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_cached_bias_is_never_stale(attention, change):
    with torch.no_grad():
        first = attention.bias(WINDOW, (8, 8))
        assert attention.bias(WINDOW, (8, 8)) is first
        change(attention, attention.cpb_mlp[2].weight.detach() + 0.1)
        second = attention.bias(WINDOW, (8, 8))
        fresh = copy.deepcopy(attention).bias(WINDOW, (8, 8))
    assert second is not first
    # The same kernels on the same values.
    assert torch.equal(second, fresh)
    assert not torch.equal(second, first.to(second.dtype))


def test_cached_bias_follows_the_window(attention):
    with torch.no_grad():
        assert attention.bias(WINDOW, (8, 8)).shape == (4, 16, 16)
        assert attention.bias((2, 4), (8, 8)).shape == (4, 8, 8)
        at_16 = attention.bias(WINDOW, (16, 16))
        assert not torch.allclose(attention.bias(WINDOW, (8, 8)), at_16)


def test_bias_has_a_gradient_whenever_gradients_are_on(attention):
    with torch.no_grad():
        attention.bias(WINDOW, (8, 8))
    for mode in (True, False):
        assert attention.train(mode).bias(WINDOW, (8, 8)).requires_grad


def test_cache_is_not_copied(attention):
    with torch.no_grad():
        attention.bias(WINDOW, (8, 8))
    assert copy.deepcopy(attention)._cached_bias is None
    assert attention._cached_bias is not None
