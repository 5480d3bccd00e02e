"""A training that takes no time: of one weight, with mmengine alone."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn

from tests.helpers.scripts import isolated
from tools.engine.runner import execute


@MODELS.register_module()
class ToyModel(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        output = self.linear(torch.stack(inputs).float())
        return dict(loss=output.square().mean()) if mode == 'loss' else [output]


@DATASETS.register_module()
class ToyData(torch.utils.data.Dataset):
    def __init__(self, length: int = 4) -> None:
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return dict(inputs=torch.ones(1))


@METRICS.register_module()
class ToyMetric(BaseMetric):
    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(acc=self.value)


def schedule(end, eta_min=0.0, by_epoch=False, **kwargs):
    """A warm-up, and a decay to the end."""
    return [
        dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=2),
        dict(type='PolyLR', by_epoch=by_epoch, begin=0, end=end, eta_min=eta_min, **kwargs),
    ]


def optimizer(**kwargs):
    """With a parameter group for each of the two parameters: the bias learns more slowly."""
    return dict(
        optimizer={**dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.01), **kwargs},
        paramwise_cfg=dict(custom_keys=dict(bias=dict(lr_mult=0.5))),
    )


def config(work_dir, by_epoch=False, until=8, score=0.5, **kwargs):
    """A training of a toy for some iterations or epochs, which saves at each second."""
    loader = dict(
        dataset=dict(type='ToyData'),
        sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True),
        batch_size=1,
        num_workers=0,
    )
    loops = (
        dict(type='EpochBasedTrainLoop', max_epochs=until, val_interval=until)
        if by_epoch
        else dict(type='IterBasedTrainLoop', max_iters=until, val_interval=until)
    )
    cfg = dict(
        model=dict(type='ToyModel'),
        work_dir=str(work_dir),
        train_dataloader=loader,
        val_dataloader={**loader, 'sampler': dict(type='DefaultSampler', shuffle=False)},
        train_cfg=loops,
        val_cfg=dict(),
        val_evaluator=dict(type='ToyMetric', value=score),
        optim_wrapper=optimizer(),
        param_scheduler=schedule(until),
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook',
                by_epoch=by_epoch,
                interval=2,
                max_keep_ckpts=2,
                save_best='acc',
            )
        ),
        launcher='none',
        default_scope='mmengine',
    )
    return Config({**cfg, **kwargs})


def run(cfg, resume=None, hooks=()):
    """Train; returns the text of the log."""

    logs = []

    def train(runner):
        # A run that began in the same second has the same file.
        log = Path(runner.log_dir) / f'{runner.timestamp}.log'
        logs.append((log, log.stat().st_size))
        for hook in hooks:
            runner.register_hook(hook, priority='LOWEST')
        runner.train()

    if resume is not None:
        cfg.resume, cfg.load_from = True, str(resume)
    with isolated():
        execute(cfg, train, strict=True)
    [(log, begin)] = logs
    return log.read_bytes()[begin:].decode()
