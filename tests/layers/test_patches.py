"""Patch embed and patch merging."""

import torch

from swinv2_backbone.layers.patches import PatchEmbed, PatchMerging
from tests.helpers.models import randomize_parameters


def test_patch_embed_pads_below_and_right_with_zeros():
    embed = randomize_parameters(PatchEmbed(3, 8, 4))
    x = torch.randn(1, 3, 5, 6)
    padded = torch.zeros(1, 3, 8, 8)
    padded[:, :, :5, :6] = x
    assert embed(x).shape == (1, 2, 2, 8)
    assert torch.equal(embed(x), embed(padded))


def test_patch_merging_order():
    merging = PatchMerging(1)
    merging.norm = torch.nn.Identity()
    merging.reduction.weight.data = torch.tensor([[1.0, 10, 100, 1000], [0, 0, 0, 0]])
    x = torch.tensor([[1.0, 2], [3, 4]])[None, :, :, None]  # rows (1 2), (3 4)
    assert merging(x)[0, 0, 0, 0].item() == 1 + 30 + 200 + 4000
    assert merging(torch.ones(1, 3, 5, 1)).shape == (1, 2, 3, 2)
