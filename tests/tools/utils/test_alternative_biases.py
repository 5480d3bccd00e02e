"""The alternative biases equal the model's own at its pretrained window, and differ at others."""

import pytest
import torch

from swinv2_backbone.layers.position_bias import position_bias
from tests.helpers.models import SMALL_ARCH, randomize_parameters

pytest.importorskip('mmengine')

from swinv2_backbone import SwinTransformerV2
from tools.utils.alternative_biases import (
    bias_table,
    interpolated_table,
    linear_bias,
    replaced_bias,
)

PRETRAINED = (8, 8)


@pytest.fixture
def cpb_mlp():
    return randomize_parameters(SwinTransformerV2(SMALL_ARCH)).layers[1].blocks[0].attn.cpb_mlp


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_bias_table(cpb_mlp):
    own = position_bias(cpb_mlp, PRETRAINED, PRETRAINED)
    table = bias_table(cpb_mlp, PRETRAINED, PRETRAINED)
    assert table.shape == (2, 15, 15)
    assert torch.equal(table[:, 7, 7], own[:, 20, 20])
    assert torch.equal(table[:, 0, 14], own[:, 7, 56])  # Query top right, key bottom left.


def test_interpolated_table(cpb_mlp):
    own = position_bias(cpb_mlp, PRETRAINED, PRETRAINED)
    torch.testing.assert_close(interpolated_table(cpb_mlp, PRETRAINED, PRETRAINED), own)
    resized = interpolated_table(cpb_mlp, (16, 16), PRETRAINED)
    # A resized table gives the farthest neighbors about what they had in the small window.
    torch.testing.assert_close(resized[:, 0, -1], own[:, 0, -1], rtol=0, atol=0.5)


@pytest.mark.parametrize('side', [8, 12, 16])  # Up to more offsets than the network has channels.
def test_linear_bias_equals_the_own_at_the_pretrained_window(cpb_mlp, side):
    window = (side, side)
    own = position_bias(cpb_mlp, window, window)
    # The logits of biases within a millionth of 0 or 16 are clamped; twice that is allowed.
    torch.testing.assert_close(linear_bias(cpb_mlp, window, window), own, rtol=0, atol=2 * 16e-6)


def test_linear_bias_at_another_window(cpb_mlp):
    larger = linear_bias(cpb_mlp, (12, 10), PRETRAINED)
    assert larger.shape == (2, 120, 120)
    assert larger.isfinite().all()
    assert ((larger >= 0) & (larger <= 16)).all()


def test_a_replaced_bias_is_restored():
    model = randomize_parameters(SwinTransformerV2(SMALL_ARCH)).eval()
    image = torch.randn(1, 3, 96, 96)
    before = model(image)
    with replaced_bias(model, interpolated_table), model.window_size_as(12):
        other = model(image)
    with pytest.raises(KeyboardInterrupt), replaced_bias(model, interpolated_table):
        raise KeyboardInterrupt
    assert all(map(torch.equal, model(image), before))
    with model.window_size_as(12):
        assert not torch.allclose(other[0], model(image)[0], atol=1e-3)
