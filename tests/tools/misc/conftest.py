"""A set-up that runs no command."""

import sys
from pathlib import Path

import pytest

from tools.misc import bootstrap, compiled_mmcv, stacks


@pytest.fixture
def stack(tmp_path, monkeypatch, request):
    """A stack whose environment is not there yet, and no wheel of mmcv at hand."""
    name = getattr(request, 'param', 'official')
    moved = stacks.STACKS[name]._replace(venv=str(tmp_path / '.venv'))
    monkeypatch.setitem(stacks.STACKS, name, moved)
    monkeypatch.setattr(stacks, 'CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(sys, 'argv', ['bootstrap.py', '--stack', name])
    monkeypatch.delenv('PIP_FIND_LINKS', raising=False)
    return moved


@pytest.fixture
def started(stack):
    """The path of a `.venv` whose set-up has begun."""
    venv = Path(stack.venv)
    venv.mkdir()
    (venv / 'install.log').touch()
    return venv


@pytest.fixture
def wheel(stack, tmp_path, monkeypatch):
    """The path of a compiled wheel of mmcv in a folder of PIP_FIND_LINKS."""
    path = tmp_path / f'{compiled_mmcv.source_name(stack)}-cp311-cp311-linux_x86_64.whl'
    path.touch()
    monkeypatch.setenv('PIP_FIND_LINKS', f'https://host/links {tmp_path}')
    return str(path)


@pytest.fixture
def commands(stack, monkeypatch):
    """The commands that the set-up would run. Building a wheel puts one into the cache."""
    recorded = []

    def run(self, command, failure, env=None):
        recorded.append(command)
        Path(stack.log).touch()

    def build_mmcv(stack, cuda):
        recorded.append(['build'])
        folder = Path(compiled_mmcv.wheel_folder(stack))
        folder.mkdir(parents=True)
        (folder / f'{compiled_mmcv.source_name(stack)}-cp311-cp311-linux_x86_64.whl').touch()

    monkeypatch.setattr(stacks.Stack, 'run', run)
    monkeypatch.setattr(bootstrap, 'build_mmcv', build_mmcv)
    monkeypatch.setattr(bootstrap, 'cuda_of_torch', lambda stack: '')
    monkeypatch.setattr(bootstrap, 'replace_opencv_without_libgl', lambda stack: None)
    return recorded
