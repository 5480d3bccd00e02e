"""Attention by SDPA on GPUs, without one: the products of its backward, the kernels it may use."""

import pytest
import torch
import torch.nn.functional as F

from swinv2_backbone.layers import sdpa_attention
from swinv2_backbone.layers.sdpa_attention import attend_by_sdpa, attend_by_sdpa_backward
from swinv2_backbone.layers.windows import WindowGrid
from tests.helpers.attention import attend_exactly, error_in_float32

# Map, window, heads. Whole windows and shifted ones; with padding; odd; one token per window.
CASES = [((16, 24), (8, 8), 2), ((15, 13), (8, 5), 2), ((20, 36), (16, 16), 1), ((3, 2), (1, 1), 1)]
# Required of the gradient of qkv: see triton_cases.py.
BOUNDS = {torch.bfloat16: 4e-3, torch.float16: 4e-3 / 8}


@pytest.fixture
def _as_on_a_gpu(monkeypatch):
    """Products in half precision, accumulated in float32, for which CPUs have no operator."""

    def product(a, b, out):
        assert a.dtype == b.dtype != out.dtype == torch.float32
        torch.bmm(a.float(), b.float(), out=out)

    monkeypatch.setattr(sdpa_attention, '_multiplies_in_half', lambda _: True)
    monkeypatch.setattr(sdpa_attention, '_product', product)


def random_inputs(size, window, heads, dtype, images=2, width=32):
    area = window[0] * window[1]
    qkv = torch.randn(images * size[0] * size[1], 3, heads, width).to(dtype)
    qkv[:: max(2, len(qkv) // 3), 1] = 0  # Keys without a length, as of blank tokens.
    scale, bias = 10 + 90 * torch.rand(heads, 1, 1), 16 * torch.rand(heads, area, area)
    return qkv, scale, bias, torch.randn(len(qkv), heads * width).to(dtype)


@pytest.mark.usefixtures('_as_on_a_gpu')
@pytest.mark.parametrize('at_once', [None, 1, 5])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(('size', 'window', 'heads'), CASES, ids=str)
def test_gradients_by_products_in_half_precision(size, window, heads, dtype, at_once):
    grid = WindowGrid.for_map(size, window, shifted=True)
    *inputs, grad_out = random_inputs(size, grid.window, heads, dtype)
    _, *exact = attend_exactly(*inputs, grid, grad_out)
    got = attend_by_sdpa_backward(grad_out, *inputs, grid.size, grid.window, grid.shifted, at_once)
    # (A gradient that is exactly 0, as with one key per window, has no relative error.)
    bounds = [BOUNDS[dtype] * exact[0].norm().clamp(min=1e-3 * len(got[0]) ** 0.5)]
    # Of the gradients of scale and bias nothing is rounded below float32.
    bounds += error_in_float32(*inputs, grid, grad_out)
    for ours, theirs, bound in zip(got, exact, bounds, strict=True):
        assert ours.isfinite().all()
        assert (ours.double() - theirs).norm() <= bound


def test_products_on_a_gpu_are_of_half_precision(monkeypatch):
    """On the meta device, which has the operators of a GPU."""
    products, bmm = [], torch.bmm

    def record(a, b, out, **kwargs):
        products.append((a.dtype, b.dtype, out.dtype))
        return bmm(a, b, out=out, **kwargs)

    monkeypatch.setattr(torch, 'bmm', record)
    qkv, *others = (x.to('meta') for x in random_inputs((16, 24), (8, 8), 2, torch.bfloat16))
    half, single = torch.bfloat16, torch.float32
    for inputs in (qkv, qkv.float()):
        attend_by_sdpa_backward(others[-1], inputs, *others[:2], (16, 24), (8, 8), False, None)
    in_half = hasattr(torch.ops.aten.bmm, 'dtype_out')  # From torch 2.8 on.
    assert products[:5] == 5 * [(half, half, single) if in_half else 3 * (single,)]
    assert products[5:] == 5 * [3 * (single,)]


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    device = property(lambda _: torch.device('cuda'))


def test_kernels_on_a_gpu_are_pinned(monkeypatch):
    """Neither cuDNN's, which misread masks, nor the flash kernels, which take none."""
    cuda, allowed = torch.backends.cuda, []
    attend, groups_of = F.scaled_dot_product_attention, sdpa_attention._groups_of

    def record(*args, **kwargs):
        enabled = dict(
            efficient=cuda.mem_efficient_sdp_enabled(),
            math=cuda.math_sdp_enabled(),
            flash=cuda.flash_sdp_enabled(),
            cudnn=cuda.cudnn_sdp_enabled(),
        )
        allowed.append([name for name, each in enabled.items() if each])
        return attend(*args, **kwargs)

    monkeypatch.setattr(F, 'scaled_dot_product_attention', record)
    # Indices are made where the map is.
    as_plain = lambda x, *args: groups_of(x.as_subclass(torch.Tensor), *args)  # noqa: E731
    monkeypatch.setattr(sdpa_attention, '_groups_of', as_plain)
    qkv, scale, bias, _ = random_inputs((16, 24), (8, 8), 2, torch.bfloat16)
    for inputs in (qkv, qkv.as_subclass(OnGpu)):
        attend_by_sdpa(inputs, scale, bias, (16, 24), (8, 8), True, None)
    on_cpu, on_gpu = allowed[:4], allowed[4:]  # Four groups of windows.
    assert on_cpu == 4 * [['efficient', 'math', 'flash', 'cudnn']]
    assert on_gpu == 4 * [['efficient', 'math']]
