"""--amp takes bfloat16 where device and model have it, and float16 with loss scaling elsewhere."""

import pytest
import torch
from mmengine.config import Config

from tools.engine.amp import use_amp
from tools.utils.errors import UserError


@pytest.fixture
def used(monkeypatch):
    """The optimizer wrapper that a device gives."""

    def use(dtype, device, scope='mmseg', native=True, **wrapper):
        monkeypatch.setattr('tools.engine.amp.get_device', lambda: device)
        # A GPU without it emulates bfloat16, slowly, and torch then says that it is supported.
        monkeypatch.setattr(
            torch.cuda,
            'is_bf16_supported',
            lambda including_emulation=True: native or including_emulation,
        )
        wrapper = dict(type='OptimWrapper', clip_grad=dict(max_norm=1), **wrapper)
        cfg = Config(dict(default_scope=scope, optim_wrapper=wrapper))
        use_amp(cfg, dtype)
        assert cfg.optim_wrapper.pop('clip_grad') == dict(max_norm=1)
        return cfg.optim_wrapper

    return use


BF16, FP16 = dict(type='BFloat16OptimWrapper'), dict(type='AmpOptimWrapper', loss_scale='dynamic')


@pytest.mark.parametrize(
    ('dtype', 'where', 'wrapper'),
    [
        ('auto', dict(device='cpu'), BF16),
        ('auto', dict(device='cpu', scope='mmpretrain'), BF16),
        ('auto', dict(device='cuda'), BF16),
        ('auto', dict(device='cuda', native=False), FP16),
        ('auto', dict(device='cuda', scope='mmdet'), FP16),
        ('auto', dict(device='npu'), FP16),
        ('bf16', dict(device='cuda', native=False), BF16),
        ('bf16', dict(device='cuda', loss_scale=512.0), BF16),
        ('fp16', dict(device='cuda'), FP16),
        ('fp16', dict(device='cuda', loss_scale=512.0), FP16 | dict(loss_scale=512.0)),
    ],
)
def test_wrapper(used, dtype, where, wrapper):
    assert used(dtype, **where) == wrapper


def test_what_a_device_or_model_lacks_is_refused(used):
    with pytest.raises(UserError, match='allowed on a CPU: --amp bf16'):
        used('fp16', 'cpu')
    with pytest.raises(UserError, match='allowed on a CPU: no --amp'):
        used('auto', 'cpu', 'mmdet')
    with pytest.raises(UserError, match=r'nms, RoIAlign.*allowed on a GPU: --amp fp16'):
        used('bf16', 'cuda', 'mmdet')
    cfg = Config(dict(default_scope='mmseg', optim_wrapper=dict(type='OptimWrapperDict')))
    with pytest.raises(UserError, match="is 'OptimWrapperDict', allowed: 'OptimWrapper'"):
        use_amp(cfg, 'auto')
