"""The safe loader reads the checkpoints of mmengine, and nothing that runs code."""

import os
import pickle
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from swinv2_backbone.compat import (
    _getattr_of_history_buffer,
    allow_mmengine_checkpoints,
    safe_mmengine_globals,
)
from tests.helpers.scripts import safe_globals_restored


@pytest.fixture(autouse=True)
def _undo_what_is_allowed():
    with mock.patch.dict(os.environ), safe_globals_restored():
        yield


@pytest.fixture
def saved(tmp_path):
    """A file as mmengine saves it, with the history of a loss."""
    torch.save({'message_hub': {'loss': HistoryBuffer([1.0, 3.0], [1, 1])}}, tmp_path / 'a.pth')
    return str(tmp_path / 'a.pth')


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


def test_mmengines_loader_reads_a_file_twice(saved):
    allow_mmengine_checkpoints()
    for _ in range(2):
        assert CheckpointLoader.load_checkpoint(saved)['message_hub']['loss'].mean() == 2.0


def test_a_context_takes_back_only_what_it_added(saved):
    with safe_mmengine_globals():
        assert torch.load(saved, weights_only=True)['message_hub']['loss'].mean() == 2.0
    with pytest.raises(pickle.UnpicklingError):
        torch.load(saved, weights_only=True)
    allow_mmengine_checkpoints()
    with safe_mmengine_globals(), safe_mmengine_globals():
        pass
    assert CheckpointLoader.load_checkpoint(saved)['message_hub']['loss'].mean() == 2.0


class MakesFolder:
    """Unpickling it makes the folder that PICKLE_TRAP names."""

    def __reduce__(self):
        return os.mkdir, (os.environ['PICKLE_TRAP'],)


@pytest.fixture
def forks_loader(monkeypatch):
    """The loader of onedl-mmengine: itself where it is installed, else what it does."""
    if hasattr(mmengine_checkpoint, 'get_torch_safe_globals'):
        return CheckpointLoader.load_checkpoint
    monkeypatch.setattr(
        mmengine_checkpoint, 'get_torch_safe_globals', lambda: [getattr, HistoryBuffer], False
    )

    def load(path):
        try:
            with torch.serialization.safe_globals(mmengine_checkpoint.get_torch_safe_globals()):
                return torch.load(path, weights_only=True)
        except pickle.UnpicklingError:
            return torch.load(path, weights_only=False)

    return load


def test_the_loader_of_the_forks_runs_no_code(tmp_path, monkeypatch, saved, forks_loader):
    """It allows any getattr, takes back what is allowed, and retries unsafely."""
    monkeypatch.setenv('PICKLE_TRAP', str(tmp_path / 'code_has_run'))
    assert getattr in mmengine_checkpoint.get_torch_safe_globals()
    allow_mmengine_checkpoints()
    assert mmengine_checkpoint.get_torch_safe_globals() == []
    for obj in (MakesFolder(), Evil()):
        torch.save({'x': obj}, tmp_path / 'evil.pth')
        with pytest.raises((pickle.UnpicklingError, ValueError)):
            forks_loader(str(tmp_path / 'evil.pth'))
    assert not (tmp_path / 'code_has_run').exists()
    for _ in range(2):
        assert forks_loader(saved)['message_hub']['loss'].mean() == 2.0
