"""The Triton kernels, interpreted on a CPU, equal the reference attention; see triton_cases.py."""

import os
import subprocess
import sys

import pytest
import torch

from swinv2_backbone.layers.fused_attention import choose_attention
from tests.helpers.models import needs_compile

pytest.importorskip('triton')


def run_cases(*arguments):
    """Run cases in a process of their own, whose kernels are interpreted."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    environment.pop('SWINV2_ATTENTION', None)
    command = [sys.executable, '-m', 'tests.layers.triton_cases', *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_kernels_equal_the_reference():
    assert len(run_cases('kernels', 0, 30)) == 30


@pytest.mark.slow
def test_kernels_equal_the_reference_in_many_cases():
    assert len(run_cases('kernels', 30, 300)) == 300


def test_more_accurate_than_timm_under_autocast():
    assert len(run_cases('timm')) == 8


def test_the_model_is_as_accurate_as_with_the_reference():
    run_cases('model')


@needs_compile
def test_compiled_and_differentiated_twice():
    run_cases('compile')


def test_forced_where_it_cannot_run(monkeypatch):
    monkeypatch.setenv('SWINV2_ATTENTION', 'triton')
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    with pytest.raises(RuntimeError, match=r'SWINV2_ATTENTION=triton: .* NVIDIA GPUs .* got cpu'):
        choose_attention(torch.zeros(1, 4, 4, 32, dtype=torch.bfloat16), 32)
    with pytest.raises(RuntimeError, match='16, 32 or 64 channels, got 8'):
        choose_attention(torch.zeros(1, device='meta', dtype=torch.bfloat16), 8)


def test_chosen_by_dtype_and_autocast(monkeypatch):
    monkeypatch.setenv('SWINV2_ATTENTION', 'triton')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    x = torch.zeros(1, 4, 4, 32)
    with pytest.raises(RuntimeError, match=r'got torch\.float32'):
        choose_attention(x, 32)
    with torch.autocast('cpu', torch.bfloat16):
        assert choose_attention(x, 32).name == 'triton'
        assert choose_attention(x, 32, dropout=True).name == 'reference'
        monkeypatch.setenv('SWINV2_ATTENTION', 'fused')
        assert choose_attention(x, 32).name == 'sdpa'  # Interpreted, it is for tests alone.
