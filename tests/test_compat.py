"""The safe loader reads the checkpoints of mmengine, and nothing that runs code."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from swinv2_backbone.compat import _getattr_of_history_buffer, allow_mmengine_checkpoints


def test_message_hub_with_histories_loads(tmp_path):
    hub = MessageHub.get_instance('compat')
    for value in (1.0, 3.0):
        hub.update_scalar('train/loss', value)
    hub.update_scalar('train/count', np.int64(3))
    hub.update_info('iter', 7)
    torch.save({'message_hub': hub.state_dict(), 'seed': np.float64(0.5)}, tmp_path / 'a.pth')
    allow_mmengine_checkpoints()
    loaded = torch.load(tmp_path / 'a.pth', weights_only=True)
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert history.mean() == 2.0
    assert loaded['message_hub']['runtime_info']['iter'] == 7


def test_the_workaround_is_still_required(tmp_path):
    """When this fails, mmengine or torch has fixed it, and the workaround can be removed."""
    torch.save({'history': HistoryBuffer([1.0], [1])}, tmp_path / 'a.pth')
    result = subprocess.run(
        [sys.executable, '-c', f'import mmengine, torch; torch.load({str(tmp_path / "a.pth")!r})'],
        capture_output=True,
        text=True,
    )
    assert 'Weights only load failed' in result.stderr


class Evil:
    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_getattr_is_restricted(tmp_path):
    allow_mmengine_checkpoints()
    torch.save({'x': Evil()}, tmp_path / 'a.pth')
    with pytest.raises((pickle.UnpicklingError, ValueError), match='getattr'):
        torch.load(tmp_path / 'a.pth', weights_only=True)
    assert _getattr_of_history_buffer(HistoryBuffer, 'mean') is HistoryBuffer.mean
    for obj, name in ((HistoryBuffer, '__init__'), (HistoryBuffer, 'update'), (np, 'mean')):
        with pytest.raises(ValueError, match='only the statistics'):
            _getattr_of_history_buffer(obj, name)
