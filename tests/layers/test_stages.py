"""Stage: recomputation of its blocks."""

import torch

from swinv2_backbone.layers.blocks import SwinTransformerBlock
from swinv2_backbone.layers.stages import SwinTransformerStage
from tests.helpers.models import randomize_parameters
from tests.helpers.tolerance import assert_equal_to_rounding


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
