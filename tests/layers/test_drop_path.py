"""Drop path: what is dropped, its rates, its draws."""

import pytest
import torch
from torch import nn

from swinv2_backbone.layers.drop_path import DropPath, draw_paths, drop_path_rates


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


def test_rates_rise_linearly_to_the_last():
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]


def test_draws_are_two_per_block_and_sample():
    blocks = [nn.ModuleList(map(DropPath, rates)) for rates in ([0.0, 0.1], [0.2])]
    x = torch.zeros(5, 1)
    first, second = draw_paths(blocks, x)
    assert (first.shape, second.shape) == ((2, 2, 5), (1, 2, 5))
    values = torch.cat([first, second])
    assert values.unique().numel() == values.numel()
    assert values.min() >= 0
    assert values.max() < 1
    for stage in blocks:
        stage.eval()
    assert draw_paths(blocks, x) == [None, None]
