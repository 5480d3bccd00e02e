"""Launches on a GPU, counted on the meta device."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers import fused_norm
from swinv2_backbone.layers.fused_attention import attend, use_fused_attention
from swinv2_backbone.layers.fused_norm import add_normed
from swinv2_backbone.layers.windows import WindowGrid
from tests.helpers.models import SMALL_ARCH
from tests.helpers.triton_interpreter import HAS_TRITON, needs_triton
from tools.benchmarking.cases import ARCHITECTURES, Case
from tools.benchmarking.launches import LaunchCounter, _Autocast, count_launches

META = torch.device('meta')


def layers(device=META):
    with device:
        return nn.Sequential(
            nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Linear(6, 5), nn.LayerNorm(5), nn.GELU()
        )


def test_an_operator_of_ours_is_what_it_launches(monkeypatch):
    monkeypatch.setenv('SWINV2_ATTENTION', 'fused')
    grid = WindowGrid.for_map((16, 16), (8, 8), shifted=False)
    qkv, scale = torch.empty(256, 3, 2, 16, device=META), torch.empty(2, 1, 1, device=META)
    bias = torch.empty(2, 64, 64, device=META)
    with LaunchCounter() as counter:
        out = attend(qkv, scale, bias, grid)
    assert out.shape == (256, 32)
    assert counter.counts['scaled_dot_product_attention'] == 1
    assert counter.counts['index_copy_'] == 1, 'the scatter'
    assert not [name for name in counter.counts if 'attend' in name]


@needs_triton
def test_a_kernel_in_triton_is_one_launch():
    x, weight = torch.empty(2, 4, 4, 16, device=META), torch.empty(16, device=META)
    branch = x.bfloat16().requires_grad_()
    with LaunchCounter() as counter:
        out = add_normed(x, branch, weight, weight)
        out.backward(torch.empty_like(out))
    assert counter.counts == {'forward': 1, 'backward': 1, 'add_rows': 1}


def test_launches_counted_by_hand():
    network = layers()
    with LaunchCounter() as counter:
        out = network(torch.empty(2, 3, 8, 12, device=META))
        out.backward(torch.empty_like(out))
    assert counter.counts == {
        'convolution': 2,
        'addmm': 1,
        'native_layer_norm': 1,
        'gelu': 1,
        'gelu_backward': 1,
        'native_layer_norm_backward': 4,
        'mm': 2,
        'sum': 1,
        'convolution_backward': 2,
    }
    assert not counter.waits


class Casts(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.dtypes.append((tuple(args[0].shape), args[0].dtype, kwargs['dtype']))
        return func(*args, **(kwargs or {}))


def test_autocast_casts_what_torch_casts():
    """Of convolutions and linear layers, weights once; CPUs have no rule for layer_norm."""
    casts = []
    for device, autocast in (
        (META, lambda: _Autocast(torch.bfloat16)),
        (torch.device('cpu'), lambda: torch.autocast('cpu', torch.bfloat16)),
    ):
        network = layers(device)[:3]
        image = torch.empty(2, 3, 8, 12, device=device)
        with autocast(), Casts() as mode:
            network(image), network(image)
        casts.append(mode.dtypes)
    assert sorted(map(str, casts[0])) == sorted(map(str, casts[1]))
    assert len(casts[0]) == 2 + 2 + 2


def test_layer_norm_is_in_float32_under_autocast():
    """As in torch's list for CUDA."""
    with _Autocast(torch.bfloat16), LaunchCounter() as counter:
        out = layers()(torch.empty(2, 3, 8, 12, device=META))
    assert out.dtype == torch.float32
    assert counter.counts['_to_copy'] == 5 + 1


@pytest.mark.parametrize(
    'wait',
    [
        lambda x: torch.tensor([1, 2], device=META),
        lambda x: torch.zeros(3).to(META),
        lambda x: x.copy_(torch.zeros(3)),
    ],
)
def test_copies_from_the_host_are_waits(wait):
    with LaunchCounter() as counter:
        wait(torch.empty(3, device=META))
    assert counter.waits.total() == 1


@pytest.mark.parametrize(
    'wait', [torch.Tensor.item, torch.Tensor.nonzero, lambda x: torch.equal(x, x), bool]
)
def test_reading_results_is_a_wait(wait):
    with LaunchCounter() as counter:
        wait(torch.ones(1))
    assert counter.waits.total() == 1


# --- the backbone ---------------------------------------------------------------------------------


@pytest.fixture
def choose(monkeypatch):
    """A function that chooses the implementation of the attention."""

    def choose(name):
        monkeypatch.setenv('SWINV2_ATTENTION', name)
        try:
            use_fused_attention()
        except ValueError:
            pytest.skip(f'the attention has no implementation {name} yet')

    return choose


def count(mode, size, window, amp=False, arch=ARCHITECTURES['tiny']):
    return count_launches(Case(mode, size, size, window, 8, 'bf16'), arch, amp)


@needs_triton
@pytest.mark.parametrize(('size', 'window'), [(512, 8), (512, 16), (500, 8)])
def test_few_launches(choose, size, window):
    """The goals: at most 200 in a forward (of formerly 575), 600 in a training step.

    Under autocast a training step misses its goal, see docs/gpu.md.
    """
    choose('triton')
    assert count('infer', size, window).counts.total() <= 200
    assert count('train', size, window).counts.total() <= 600
    assert count('infer', size, window, amp=True).counts.total() <= 200
    assert count('train', size, window, amp=True).counts.total() <= 660


def test_weights_are_cast_together_under_autocast(choose):
    choose('sdpa')
    for mode, casts in (('infer', 4), ('train', 8)):  # Of four stages, and of their gradients.
        counts = count(mode, 200, 8, True, SMALL_ARCH).counts
        assert counts['_foreach_copy_'] == casts


def test_launches_for_lists_of_tensors():
    lists = [[(3, 4)], 64 * [(2,)], 65 * [(2,)], [(320, 2**16)], [(320, 2**16), (1,)]]
    for shapes, launches in zip(lists, [1, 1, 2, 1, 2], strict=True):
        tensors = [torch.empty(shape, device=META) for shape in shapes]
        with LaunchCounter() as counter:
            torch._foreach_copy_(tensors, tensors)
        assert counter.counts == {'_foreach_copy_': launches}


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('mode', ['infer', 'train'])
@pytest.mark.parametrize('implementation', [pytest.param('triton', marks=needs_triton), 'sdpa'])
def test_the_host_never_waits(choose, implementation, mode, amp):
    """Whatever it does at a size of images that it has seen before."""
    choose(implementation)
    counter = count(mode, 200, 8, amp, SMALL_ARCH)
    assert counter.counts.total() > 70
    assert not counter.waits


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('mode', ['infer', 'train'])
def test_the_host_never_waits_around_the_attention(monkeypatch, choose, mode, amp):
    """Whichever runs, with the fused norm."""
    choose('fused')
    implementation = 'triton' if HAS_TRITON else 'sdpa'
    monkeypatch.setattr(fused_norm, 'configured_implementation', lambda: implementation)
    counter = count(mode, 200, 8, amp, SMALL_ARCH)
    assert counter.counts['forward'] == 16 * HAS_TRITON
    assert not counter.waits


@needs_triton
def test_the_host_never_waits_for_a_new_image_size(choose):
    choose('triton')
    with META:
        model = SwinTransformerV2(SMALL_ARCH).bfloat16().train()
        images = [torch.empty(2, 3, side, 92, dtype=torch.bfloat16) for side in (64, 100)]
    model(images[0])
    with LaunchCounter() as counter:
        sum(out.sum() for out in model(images[1])).backward()
    assert counter.counts.total() > 100
    assert not counter.waits
