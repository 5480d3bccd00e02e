"""A small training whose result must not depend on how it is divided among processes."""

import os
import subprocess
import sys

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn

from swinv2_backbone import SwinTransformerV2
from tests.helpers import toy_training
from tests.helpers.models import SMALL_ARCH
from tests.helpers.scripts import ROOT, free_port, isolated
from tools.engine.runner import execute
from tools.engine.state_size import StateSizeHook
from tools.engine.strategies import use_strategy

STRATEGIES = 'ddp', 'zero1', 'fsdp2'
STEPS, SAVED = 5, 3


@MODELS.register_module()
class ScaledModel(BaseModel):
    """The backbone and a head without batch statistics, in float64."""

    def __init__(self, **kwargs) -> None:
        super().__init__()
        arguments = dict(arch=SMALL_ARCH, window_size=4, drop_path_rate=0.0)
        self.backbone = SwinTransformerV2(**{**arguments, **kwargs})
        self.heads = nn.ModuleList(nn.Linear(n, 2) for n in self.backbone.out_channels)
        self.double()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        maps = self.backbone(torch.stack(inputs))
        by_map = [h(x.mean((2, 3))) for h, x in zip(self.heads, maps, strict=True)]
        outputs = torch.stack(by_map).sum(0)
        return dict(loss=(outputs - 1).square().mean()) if mode == 'loss' else [*outputs]


@DATASETS.register_module()
class ScaledData(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(inputs=torch.randn(3, 40, 40, generator=generator, dtype=torch.float64))


class Losses(Hook):
    """Collects the loss of each iteration, as a mean over all processes."""

    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs['loss'].detach().clone()
        if runner.distributed:
            torch.distributed.all_reduce(loss)
        self.losses.append(loss.item() / runner.world_size)


def train(work_dir, batch, strategy=None, resume=None, model=None):
    """Train for STEPS updates, and save after SAVED of them; returns the losses.

    Args:
        batch: Images per process.
        strategy: None: in this process alone.
        resume: Checkpoint.
    """
    cfg = toy_training.config(
        work_dir,
        until=STEPS,
        model=dict(type='ScaledModel', **(model or {})),
        val_dataloader=None,
        val_cfg=None,
        val_evaluator=None,
        launcher='pytorch' if strategy else 'none',
        train_dataloader=dict(
            dataset=dict(type='ScaledData'),
            sampler=dict(type='InfiniteSampler', shuffle=False),
            batch_size=batch,
            num_workers=0,
        ),
        randomness=dict(seed=0),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            constructor='swinv2_backbone.SwinV2LayerDecayConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.9),
            clip_grad=dict(max_norm=0.5),
        ),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=SAVED)),
    )
    if strategy:
        use_strategy(cfg, strategy)
    if resume is not None:
        cfg.resume, cfg.load_from = True, str(resume)
    hook = Losses()

    def work(runner):
        runner.register_hook(hook)
        runner.register_hook(StateSizeHook())
        runner.train()

    with isolated():
        execute(cfg, work, strict=True)
    return hook.losses


def start_processes(count, script, *args, **variables):
    """Start processes as torchrun does, without its restarts and its supervision."""
    port = free_port()
    shared = dict(
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
        WORLD_SIZE=str(count),
        OMP_NUM_THREADS='1',
        CUDA_VISIBLE_DEVICES='-1',
    )
    return [
        subprocess.Popen(
            [sys.executable, ROOT / script, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **shared, 'RANK': str(rank), 'LOCAL_RANK': str(rank), **variables},
        )
        for rank in range(count)
    ]


def train_with_strategies(folder):
    """In one of several processes: train with each strategy, and resume in each from each.

    Args:
        folder: Where the checkpoints go, and `losses.pth`. It has a training in one process,
            `alone`.
    """
    losses = {name: train(folder / name, 1, name) for name in STRATEGIES}
    for saved in ('alone', *STRATEGIES):
        for name in STRATEGIES:
            file = folder / saved / f'iter_{SAVED}.pth'
            losses[saved, name] = train(folder / f'{saved}_{name}', 1, name, resume=file)
    if torch.distributed.get_rank() == 0:
        torch.save(losses, folder / 'losses.pth')
    torch.distributed.destroy_process_group()
