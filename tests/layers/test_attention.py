"""The attention module: parameters, the clamped scale, the cached position bias."""

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch

from swinv2_backbone.layers import attention as attention_module
from swinv2_backbone.layers import caches
from swinv2_backbone.layers.attention import (
    ConstantsCache,
    WindowAttention,
    attention_constants,
    logit_factor,
)
from swinv2_backbone.layers.position_bias import position_bias
from swinv2_backbone.layers.windows import WindowGrid
from tests.helpers.models import randomize_parameters
from tests.helpers.tolerance import assert_equal_to_rounding

WINDOW = (4, 4)


@pytest.fixture
def attention():
    return randomize_parameters(WindowAttention(16, 4)).eval()


def constants_of(attention):
    return attention_constants([attention], WINDOW, (8, 8))[0]


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
    grid, constants = WindowGrid.for_map((4, 4), WINDOW, False), constants_of(attention)
    with torch.autocast('cpu', dtype):
        attention(torch.randn(2, 4, 4, 16), grid, constants)
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


def get(cache, *attentions, window=WINDOW, pretrained_window=(8, 8)):
    return cache.get(attentions, window, pretrained_window)


def values(constants):
    return [tensor for each in constants for tensor in each]


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_cached_constants_are_never_stale(attention, change):
    cache = ConstantsCache()
    with torch.no_grad():
        first = get(cache, attention)
        assert get(cache, attention) is first
        change(attention, attention.cpb_mlp[2].weight.detach() + 0.1)
        second = get(cache, attention)
        fresh = get(ConstantsCache(), attention)
    assert second is not first
    # The same kernels on the same values.
    assert all(map(torch.equal, values(second), values(fresh)))
    assert not torch.equal(second[0].bias, first[0].bias.to(second[0].bias.dtype))


@pytest.mark.parametrize('name', ['q_bias', 'v_bias', 'logit_scale', 'cpb_mlp.0.bias'])
@pytest.mark.parametrize('by_value', [True, False], ids=['by value', 'by version'])
def test_cached_constants_follow_every_parameter(monkeypatch, attention, name, by_value):
    monkeypatch.setattr(attention_module, '_cheap_to_compare', lambda _: by_value)
    cache, other = ConstantsCache(), copy.deepcopy(attention)
    with torch.no_grad():
        first = get(cache, other, attention)
        attention.get_parameter(name).add_(0.25)
        second = get(cache, other, attention)
    assert all(map(torch.equal, first[0], second[0]))
    assert not all(map(torch.equal, first[1], second[1]))


@pytest.mark.parametrize('change', list(CHANGES.values())[:1] + list(CHANGES.values())[2:-1])
def test_versions_tell_of_all_changes_but_writes_through_data(monkeypatch, attention, change):
    """As on a GPU, where comparing values would make the host wait."""
    monkeypatch.setattr(attention_module, '_cheap_to_compare', lambda _: False)
    cache = ConstantsCache()
    with torch.no_grad():
        first = get(cache, attention)
        assert get(cache, attention) is first
        change(attention, attention.cpb_mlp[2].weight.detach() + 0.1)
        assert not torch.equal(get(cache, attention)[0].bias, first[0].bias)
        attention.cpb_mlp[2].weight.data.copy_(attention.cpb_mlp[2].weight - 0.1)
        cache.clear()
        torch.testing.assert_close(get(cache, attention)[0].bias, first[0].bias)


def test_constants_of_several_attentions_equal_those_of_each(attention):
    attentions = [attention, randomize_parameters(WindowAttention(16, 4), seed=1)]
    attentions = [each.double() for each in attentions]
    together = attention_constants(attentions, WINDOW, (8, 8))
    alone = [attention_constants([each], WINDOW, (8, 8))[0] for each in attentions]
    assert_equal_to_rounding(values(together), values(alone))
    bias = position_bias(attention.cpb_mlp, WINDOW, (8, 8))
    assert_equal_to_rounding(together[0].bias, bias)


def test_cached_constants_follow_the_window(attention):
    cache = ConstantsCache()
    with torch.no_grad():
        at_8 = get(cache, attention)[0].bias
        assert at_8.shape == (4, 16, 16)
        assert get(cache, attention, window=(2, 4))[0].bias.shape == (4, 8, 8)
        at_16 = get(cache, attention, pretrained_window=(16, 16))[0].bias
    assert not torch.allclose(at_8, at_16)


def test_constants_have_a_gradient_whenever_gradients_are_on(attention):
    cache = ConstantsCache()
    with torch.no_grad():
        get(cache, attention)
    for mode in (True, False):
        attention.train(mode)
        assert all(tensor.requires_grad for tensor in values(get(cache, attention)))


def test_the_cache_is_not_copied(attention):
    cache = ConstantsCache()
    with torch.no_grad():
        first = get(cache, attention)
        assert get(copy.deepcopy(cache), attention) is not first
        assert get(pickle.loads(pickle.dumps(cache)), attention) is not first
        assert get(cache, attention) is first


# --- streams and CUDA graphs, simulated -----------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """A simulated GPU: its current stream, and whether that is being captured."""

    class Gpu:
        stream, capturing = 0, False

    for module in (attention_module, caches):
        monkeypatch.setattr(module, 'current_stream', lambda _: Gpu.stream)
        monkeypatch.setattr(module, 'capturing', lambda: Gpu.capturing)
    monkeypatch.setattr(attention_module, '_cheap_to_compare', lambda _: False)
    monkeypatch.setattr(caches, '_captured', [])
    return Gpu


@torch.no_grad()
def test_what_a_graph_reads_outlives_the_cache(gpu, attention):
    cache = ConstantsCache()
    warm = get(cache, attention)
    gpu.stream, gpu.capturing = 7, True
    assert get(cache, attention) is warm, 'made by the warm-up, on another stream'
    gpu.stream, gpu.capturing = 0, False
    pointers, references = [x.data_ptr() for x in values(warm)], weakref.ref(warm[0].bias)
    del warm
    attention.q_bias.add_(1)
    get(cache, attention)
    cache.clear()
    gc.collect()
    assert references() is not None
    [kept] = caches._captured
    assert [x.data_ptr() for x in values(kept.constants)] == pointers


@torch.no_grad()
def test_constants_made_in_a_capture_are_not_cached(gpu, attention):
    cache = ConstantsCache()
    gpu.capturing = True
    captured = get(cache, attention)
    gpu.capturing = False
    assert get(cache, attention) is not captured


@torch.no_grad()
def test_constants_belong_to_a_stream(gpu, attention):
    cache = ConstantsCache()
    first = get(cache, attention)
    gpu.stream = 7
    second = get(cache, attention)
    assert second is not first
    gpu.stream = 0
    assert get(cache, attention) is first
    attention.q_bias.add_(1)
    changed = get(cache, attention)
    gpu.stream = 7
    assert torch.equal(get(cache, attention)[0].qkv_bias, changed[0].qkv_bias)
    assert len(cache._cached) == 2
