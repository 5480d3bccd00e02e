"""Initialization for training from scratch."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from swinv2_backbone.layers.blocks import SwinTransformerBlock
from swinv2_backbone.layers.initialization import has_values, init_from_scratch, reset_from_scratch


def test_weights_from_scratch_are_within_five_standard_deviations():
    """mmengine's trunc_normal_init gave -2, 100 of them, to one weight in 2**24."""
    linear = torch.nn.Linear(5000, 5000)
    init_from_scratch(linear)
    assert linear.weight.abs().max() <= 0.1
    # The standard deviation of 25 million samples is off by 0.02 / sqrt(5e7) = 3e-6.
    assert linear.weight.std().item() == pytest.approx(0.02, abs=2e-5)
    assert not linear.bias.any()


def test_parameters_without_values_are_recognized():
    assert has_values(torch.nn.Linear(2, 2))
    assert not has_values(torch.nn.Linear(2, 2, device='meta'))
    with FakeTensorMode():
        assert not has_values(torch.nn.Linear(2, 2))


def test_a_block_made_without_values_gets_those_of_one_made_with():
    with torch.device('meta'):
        block = SwinTransformerBlock(8, 2)
    block = block.to_empty(device='cpu')
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(float('nan'))
    reset_from_scratch(block)
    expected = SwinTransformerBlock(8, 2)
    init_from_scratch(expected)
    for new, old in zip(block.parameters(), expected.parameters(), strict=True):
        assert new.isfinite().all()
        if not old.std() > 0:  # Else it is random.
            assert torch.equal(new, old)
