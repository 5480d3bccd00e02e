"""The reference attention equals its definition."""

import pytest
import torch
from torch.nn import functional as F

from swinv2_backbone.layers.reference_attention import cosine_attention, normalize
from tests.helpers.tolerance import assert_equal_to_rounding


def test_zero_vectors_stay_zero_and_get_no_gradient():
    x = torch.randn(3, 5)
    x[1] = 0
    x.requires_grad_()
    unit = normalize(x)
    assert torch.equal(unit[1], torch.zeros(5))
    torch.testing.assert_close(unit[[0, 2]].norm(dim=-1), torch.ones(2))
    unit.sum().backward()
    assert torch.equal(x.grad[1], torch.zeros(5))
    assert x.grad.isfinite().all()


@pytest.mark.parametrize('length', [1e-8, 1e-11, 1e-13, 1e-18, 1e-30])
def test_gradients_near_zero_vectors_are_finite(length):
    x = torch.full((1, 4), length, requires_grad=True)
    normalize(x).square().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_unit_vectors_are_at_least_float32(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert normalize(torch.randn(2, 4).to(dtype)).dtype == expected


def test_equals_a_softmax_of_cosine_similarities():
    q, k, v = torch.randn(3, 6, 2, 5, 8).double()
    bias, scale = torch.randn(2, 5, 5).double(), torch.full((2, 1, 1), 7.0).double()
    logits = 7 * F.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1) + bias
    expected = torch.einsum('bhqk,bhkd->bhqd', logits.softmax(-1), v)
    assert_equal_to_rounding(cosine_attention(q, k, v, scale, bias), expected)
