"""Drop path, MLP, block, stage."""

import pytest
import torch

from swinv2_backbone.layers.attention import attention_constants
from swinv2_backbone.layers.blocks import (
    DropPath,
    Mlp,
    SwinTransformerBlock,
    SwinTransformerStage,
    init_from_scratch,
)
from swinv2_backbone.layers.windows import WindowGrid
from tests.helpers.models import randomize_parameters
from tests.helpers.tolerance import assert_equal_to_rounding


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    values = DropPath(0.25).train()(torch.ones(4000, 2, 3)).flatten(1)
    assert (values == values[:, :1]).all()
    assert values.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    # The mean of 4000 samples has a standard deviation of sqrt(0.25 / 0.75 / 4000) = 0.009.
    assert values.mean().item() == pytest.approx(1, abs=0.05)


def test_drop_path_at_the_ends():
    x = torch.randn(3, 4)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0).train()(x) is x
    assert torch.equal(DropPath(1.0).train()(x), torch.zeros(3, 4))


def test_block_with_all_paths_dropped_is_the_identity():
    block = randomize_parameters(SwinTransformerBlock(8, 2, drop_path=1.0)).train()
    x = torch.randn(2, 5, 7, 8)
    grid = WindowGrid.for_map((5, 7), (4, 4), shifted=True)
    [constants] = attention_constants([block.attn], (4, 4), (4, 4))
    assert torch.equal(block(x, grid, constants), x)


def test_mlp_shape_and_dropout():
    mlp = Mlp(4, 16, drop=1.0)
    assert torch.equal(mlp.train()(torch.randn(2, 3, 4)), torch.zeros(2, 3, 4))
    assert mlp.eval()(torch.randn(2, 3, 4)).any()


def make_stage(with_cp=False):
    return randomize_parameters(
        SwinTransformerStage(
            8, 2, 2, (4, 4), (4, 4), drop_path=(0.1, 0.3), downsample=True, with_cp=with_cp
        )
    )


def test_checkpointing_changes_nothing():
    results = []
    for with_cp in (False, True):
        stage = make_stage(with_cp).double().train()
        x = torch.ones(2, 9, 6, 8, dtype=torch.float64, requires_grad=True)
        torch.manual_seed(3)  # the same paths are dropped
        stage(x * torch.arange(8)).square().mean().backward()
        results.append([x.grad, *(p.grad for p in stage.blocks.parameters())])
    assert_equal_to_rounding(*results)


def test_checkpointing_recomputes(monkeypatch):
    stage, calls = make_stage(with_cp=True).train(), []
    forward = SwinTransformerBlock.forward
    monkeypatch.setattr(
        SwinTransformerBlock, 'forward', lambda self, *args: calls.append(1) or forward(self, *args)
    )
    stage(torch.randn(1, 8, 8, 8)).sum().backward()
    assert len(calls) == 4
    with torch.no_grad():
        stage(torch.randn(1, 8, 8, 8))
    assert len(calls) == 6


def test_weights_from_scratch_are_within_five_standard_deviations():
    """mmengine's trunc_normal_init gave -2, 100 of them, to one weight in 2**24."""
    linear = torch.nn.Linear(5000, 5000)
    init_from_scratch(linear)
    assert linear.weight.abs().max() <= 0.1
    # The standard deviation of 25 million samples is off by 0.02 / sqrt(5e7) = 3e-6.
    assert linear.weight.std().item() == pytest.approx(0.02, abs=2e-5)
    assert not linear.bias.any()
