"""Automatic mixed precision: float16 with loss scaling, or bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner.amp import autocast
from torch import nn

from tools.utils.errors import UserError


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Runs the forward under bfloat16 autocast.

    mmengine's AmpOptimWrapper refuses to run on a CPU, and scales the loss, which bfloat16 does not
    require: its exponents are those of float32.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """As in OptimWrapper, under autocast."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def use_amp(cfg: Config, dtype: str) -> None:
    """Make a training use automatic mixed precision.

    Args:
        dtype: 'fp16', 'bf16', or 'auto': bf16 where device and model have it, fp16 elsewhere.

    Raises:
        UserError: If device, model or config do not allow it.
    """
    wrapper, device = cfg.optim_wrapper, get_device()
    names = ('OptimWrapper', 'AmpOptimWrapper', 'BFloat16OptimWrapper')
    if wrapper.type not in names:
        raise UserError(f"--amp: optim_wrapper.type is {wrapper.type!r}, allowed: 'OptimWrapper'")
    detector = cfg.default_scope == 'mmdet'
    if dtype == 'auto':
        dtype = 'bf16' if _has_bfloat16(device) and not detector else 'fp16'
    if dtype == 'bf16' and detector:
        raise UserError(
            "--amp bf16: mmcv's operators in a detector (nms, RoIAlign) take no bfloat16; allowed "
            'on a GPU: --amp fp16'
        )
    if dtype == 'fp16' and device == 'cpu':
        raise UserError(
            '--amp: float16 is for GPUs, and torch finds none here; allowed on a CPU: '
            + ("no --amp, since mmcv's operators take no bfloat16" if detector else '--amp bf16')
        )
    if dtype == 'fp16':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    else:
        wrapper.type = 'BFloat16OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):  # of AmpOptimWrapper
            wrapper.pop(key, None)


def _has_bfloat16(device: str) -> bool:
    if device == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == 'cpu'
