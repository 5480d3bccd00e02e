"""A training of a small SwinV2 in which all is random that can be: samples, drop path, order."""

import random

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.compat import safe_mmengine_globals
from tests.helpers import toy_training

ARCH = dict(embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2))


@MODELS.register_module()
class RandomModel(BaseModel):
    """With drop path and dropout, and statistics of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = SwinTransformerV2(
            arch=ARCH, window_size=4, out_indices=(3,), drop_path_rate=0.5
        )
        self.head = nn.Sequential(nn.BatchNorm2d(64), nn.Dropout(), nn.Conv2d(64, 1, 1))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        outputs = self.head(self.backbone(torch.stack(inputs))[-1])
        return dict(loss=(outputs - 1).square().mean()) if mode == 'loss' else list(outputs)


@DATASETS.register_module()
class RandomData(torch.utils.data.Dataset):
    """Images of noise from all three generators; notes in a file which were read."""

    def __init__(self, length: int = 10, notes: str | None = None) -> None:
        self.length, self.notes = length, notes

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if self.notes:
            with open(self.notes, 'ab', buffering=0) as file:
                file.write(f'{index}\n'.encode())
        noise = torch.rand(3, 32, 32) + random.random() + torch.from_numpy(np.random.rand(3, 1, 1))  # noqa: NPY002
        return dict(inputs=(noise * index).float())


def config(work_dir: object, by_epoch: bool = False, until: int = 8, **changes) -> Config:
    """Its config: batches of 2 from 10 samples, and a checkpoint at each iteration.

    Args:
        changes: Merged into it.
    """
    cfg = toy_training.config(work_dir, by_epoch, until, model=dict(type='RandomModel'))
    cfg.train_dataloader.update(batch_size=2, dataset=dict(type='RandomData'))
    cfg.val_dataloader.update(dataset=dict(type='RandomData', length=2))
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=1, max_keep_ckpts=-1)
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01))
    cfg.merge_from_dict(changes)
    return cfg


def read(path: object) -> dict:
    """A checkpoint, read safely."""
    with safe_mmengine_globals():
        return torch.load(path, weights_only=True)


def outcome(path: object) -> dict:
    """What a checkpoint has of a training, bit for bit: to compare with that of another."""
    state = read(path)
    keys = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    return {'seed': state['meta']['seed'], **{key: _flat(state.get(key)) for key in keys}}


def _flat(state: object) -> object:
    """With its tensors as bytes."""
    if isinstance(state, torch.Tensor):
        return state.dtype, state.shape, state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: _flat(value) for key, value in state.items()}
    return [_flat(value) for value in state] if isinstance(state, (list, tuple)) else state
