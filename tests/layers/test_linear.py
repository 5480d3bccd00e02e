"""Linear layers by oneDNN: the values of torch's own operators, and only where those may go."""

import contextlib

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers.linear import linear
from tests.helpers.models import SMALL_ARCH, randomize_parameters
from tests.helpers.tolerance import assert_as_accurate

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')),
    reason='torch was built without oneDNN',
)


@pytest.fixture
def calls(monkeypatch):
    """Rows and activation of each product that oneDNN computes."""
    calls, operator = [], torch.ops.mkldnn._linear_pointwise

    def recorded(x, weight, bias, act, *rest):
        calls.append((x.numel() // x.shape[-1], act))
        return operator(x, weight, bias, act, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, '_linear_pointwise', recorded)
    return calls


@pytest.mark.parametrize('act', [None, nn.GELU()], ids=['none', 'gelu'])
@pytest.mark.parametrize('bias', ['none', 'own', 'given'])
@pytest.mark.parametrize('shape', [(256, 40), (2, 32, 8, 40), 'transposed'], ids=str)
def test_values_are_those_of_the_modules(calls, act, bias, shape):
    layer = nn.Linear(40, 24, bias=bias == 'own')
    given = torch.randn(24) if bias == 'given' else None
    x = 3 * (torch.randn(40, 512).t() if shape == 'transposed' else torch.randn(shape))

    def by_modules(dtype):
        used = layer.bias if given is None else given
        out = nn.functional.linear(
            x.to(dtype), layer.weight.to(dtype), None if used is None else used.to(dtype)
        )
        return out if act is None else act(out)

    with torch.no_grad():
        got = linear(layer, x, given, act)
        assert calls == [(x.numel() // 40, 'none' if act is None else 'gelu')]
        assert_as_accurate(got, by_modules(torch.float32), by_modules(torch.float64))
        layer.weight.data.mul_(2)  # Without a trace in torch: nothing may be kept of the weights.
        assert_as_accurate(
            linear(layer, x, given, act), by_modules(torch.float32), by_modules(torch.float64)
        )


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Adapted(nn.Linear):
    """As adapters for fine-tuning do."""


def with_hook(module):
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    'change',
    [
        dict(layer=Adapted(5, 7)),
        dict(layer=with_hook(nn.Linear(5, 7))),
        dict(layer=nn.Sequential(nn.Linear(5, 7))),
        dict(layer=nn.Linear(5, 7).double(), x=torch.randn(2, 128, 5).double()),
        dict(layer=nn.Linear(5, 7).bfloat16(), x=torch.randn(2, 128, 5).bfloat16()),
        dict(act=with_hook(nn.GELU())),
        dict(act=nn.GELU(approximate='tanh')),
        dict(act=nn.ReLU()),
        dict(x=torch.randn(0, 3, 5)),
        dict(x=torch.randn(2, 127, 5)),
        dict(x=torch.randn(2304, 5)),
        dict(within=torch.enable_grad()),
        dict(within=torch.autocast('cpu', torch.bfloat16)),
        dict(within=torch.backends.mkldnn.flags(enabled=False)),
        dict(within=Watching()),
        dict(attention='reference'),
    ],
    ids=lambda change: ' '.join(f'{name}={type(x).__name__}' for name, x in change.items()),
)
def test_not_where_somebody_would_notice(monkeypatch, calls, change):
    layer, act = change.get('layer', nn.Linear(5, 7)), change.get('act', nn.GELU())
    x = change.get('x', torch.randn(2, 128, 5))
    monkeypatch.setenv('SWINV2_ATTENTION', change.get('attention', 'fused'))
    with torch.no_grad(), change.get('within', contextlib.nullcontext()):
        assert torch.equal(linear(layer, x, act=act), act(layer(x)))
    assert not calls


def test_not_under_a_transform(calls):
    layer, x = nn.Linear(5, 7), torch.randn(2, 256, 5)
    with torch.no_grad():
        got = torch.vmap(lambda each: linear(layer, each))(x)
        torch.testing.assert_close(got, layer(x))
    assert not calls


def test_a_model_is_as_accurate(calls):
    model = randomize_parameters(SwinTransformerV2(SMALL_ARCH)).eval()
    image = torch.randn(1, 3, 200, 264)
    exact = model.double()(image.double())
    reference = model.float()(image)
    assert not calls, 'a training or fine-tuning'
    with torch.no_grad():
        got = model(image)
    # 3300 tokens in the first stage: 2048, 1024, and 228 that are not for oneDNN.
    assert {(2048, 'gelu'), (2048, 'none'), (1024, 'gelu'), (1024, 'none')} <= set(calls)
    assert_as_accurate(got, reference, exact)


def test_few_numbers_of_rows_whatever_the_sizes(calls):
    """oneDNN keeps a kernel for each."""
    model = SwinTransformerV2(SMALL_ARCH).eval()
    with torch.no_grad():
        for side in range(32, 400, 9):
            model(torch.randn(1, 3, side, 200))
    assert {rows for rows, _ in calls} <= set(range(256, 2049, 256))
    assert len(calls) > 100


def test_flops_are_counted_alike():
    model, image = SwinTransformerV2(SMALL_ARCH).eval(), torch.randn(1, 3, 64, 64)
    counts = []
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), FlopCounterMode(display=False) as counter:
            model(image)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
