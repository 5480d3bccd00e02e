"""The matrix products of a step, recorded and done again."""

import pytest
import torch
from torch import nn

from tools.benchmarking.cases import Case
from tools.benchmarking.gemm import Operand, Product, Replay, record
from tools.benchmarking.networks import build_network
from tools.benchmarking.steps import NetworkStep


@pytest.mark.parametrize('mode', ['infer', 'train'])
def test_multiply_adds(monkeypatch, mode):
    """The published 5.9 G of SwinV2-T; our own record of products agrees with torch's count."""
    monkeypatch.setenv('SWINV2_ATTENTION', 'reference')
    case = Case(mode, 256, 256, 8, 1, 'fp32')
    network = build_network('ours_reference', case, 'tiny', 0.0)
    products, multiply_adds = record(NetworkStep(network, case, 'cpu'))
    assert sum(product.multiply_adds for product in products) == multiply_adds
    if mode == 'infer':
        assert multiply_adds == pytest.approx(5.9e9, rel=0.03)


def test_recorded_products():
    """A convolution of patches and a linear layer, forward and backward, counted by hand."""
    layers = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Linear(6, 5))
    image = torch.randn(2, 3, 8, 12)
    products, multiply_adds = record(lambda: layers(image).sum().backward())
    patches, linear = 2 * 6 * 48 * 8, 16 * 6 * 5
    assert [product.multiply_adds for product in products] == [
        patches,
        linear,
        linear,
        linear,
        patches,
    ]
    assert multiply_adds == 2 * patches + 3 * linear
    assert [product.bias for product in products] == [True, True, False, False, False]
    assert products[1].b.transposed, 'a weight is (out, in)'


@pytest.mark.parametrize('threshold', [0, 2**25])
def test_replay(monkeypatch, threshold):
    """Buffers have the shapes and layouts of the products, and hold the products afterwards."""
    monkeypatch.setattr('tools.benchmarking.gemm._CACHED_BYTES', threshold)
    for product in (
        Product(Operand((6, 4), torch.float32), Operand((4, 5), torch.float32, True)),
        Product(Operand((6, 4), torch.bfloat16, True), Operand((4, 5), torch.bfloat16), bias=True),
        Product(Operand((2, 6, 4), torch.float32, True), Operand((2, 4, 5), torch.float32)),
    ):
        replay = Replay([product, product], 'cpu')
        replay()
        (_, operands, out), _ = replay.calls
        *bias, a, b = operands
        assert (Operand.like(a), Operand.like(b)) == (product.a, product.b)
        torch.testing.assert_close(out, a @ b + (bias[0] if bias else 0))
