"""Every trainable parameter gets a gradient, so that distributed training waits for none."""

import itertools

import pytest
import torch
from torch import nn

from swinv2_backbone import SwinTransformerV2

ARCH = dict(embed_dims=16, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8))
OUT_INDICES = [c for n in (1, 2, 3, 4) for c in itertools.combinations(range(4), n)]


def build(out_indices, frozen_stages, with_cp):
    backbone = SwinTransformerV2(
        ARCH, window_size=4, out_indices=out_indices, frozen_stages=frozen_stages, with_cp=with_cp
    )
    # A head, without which nothing might be trained.
    return nn.ModuleDict(dict(backbone=backbone, head=nn.Conv2d(1, 1, 1))).train()


def loss_of(model, image):
    maps = model['backbone'](image)
    return sum(model['head'](x.mean(1, keepdim=True)).square().sum() for x in maps)


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_every_parameter_gets_a_gradient(frozen_stages, with_cp):
    """For every choice of out_indices."""
    image = torch.randn(1, 3, 40, 40)
    for out_indices in OUT_INDICES:
        model = build(out_indices, frozen_stages, with_cp)
        loss_of(model, image).backward()
        without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
        assert not without, out_indices
        frozen = {
            n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None
        }
        assert not frozen, out_indices


class Step(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return loss_of(self.model, image)


@pytest.mark.parametrize(
    'choice', [((0, 1, 2, 3), -1, False), ((1, 3), 0, True), ((2,), 2, True), ((0,), 4, False)]
)
def test_distributed_data_parallel_waits_for_no_parameter(tmp_path, choice):
    """Its second forward raises an error if a parameter had no gradient in the first."""
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        step = nn.parallel.DistributedDataParallel(Step(build(*choice)))
        for _ in range(3):
            step(torch.randn(1, 3, 40, 40)).backward()
    finally:
        torch.distributed.destroy_process_group()
