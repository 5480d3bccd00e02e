"""Compiling the kernels of the package for a GPU that is not there, with the Triton at hand."""

import os
from pathlib import Path

import pytest

triton = pytest.importorskip('triton')

from tests.helpers.scripts import call, error_line
from tests.helpers.triton_interpreter import INTERPRETING
from tools.analysis_tools import gpu_compile

pytestmark = pytest.mark.skipif(INTERPRETING, reason='an interpreted kernel cannot be compiled')


@pytest.fixture
def folder(tmp_path):
    """A folder with the installed Triton, as `make .venv/triton` makes one for each version."""
    path = tmp_path / 'tritons' / triton.__version__
    path.mkdir(parents=True)
    os.symlink(Path(triton.__file__).parent, path / 'triton')
    return path.parent


def options(folder, out):
    return ['--quick', '--tritons', triton.__version__, '--folder', folder, '--out', out]


def test_kernels_compile_without_spills(folder, tmp_path):
    out = tmp_path / 'compiled.md'
    with pytest.raises(SystemExit) as ended:
        call(gpu_compile.main, *options(folder, out), '--capabilities', 90)
    text = out.read_text()
    assert ended.value.code == 0, text
    for kernel in ('triton_forward.forward', 'triton_norm.forward', 'triton_norm.backward'):
        assert f'| {kernel} |' in text
    assert 'HGMMA' in text
    assert f'triton {triton.__version__}' in text


def test_version_that_is_missing_is_one_line(tmp_path, capsys):
    line = error_line(capsys, gpu_compile.main, *options(tmp_path, tmp_path / 'compiled.md'))
    assert f'triton {triton.__version__} is not in' in line
    assert 'make .venv/triton' in line


def test_one_failure_fails_the_command(folder, tmp_path, monkeypatch, capsys):
    entry = dict(
        kernel='module.kernel', types=['*bf16'], constants={},
        options=dict(num_warps=4, num_stages=1),
        uses=['window 8'], capability=90, error='CompilationError: no', triton='0',
    )  # fmt: skip
    monkeypatch.setattr(gpu_compile, 'collect', lambda version, process: [entry])
    monkeypatch.setattr(gpu_compile, 'start', lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        call(gpu_compile.main, *options(folder, tmp_path / 'compiled.md'))
    assert ended.value.code == 1
    assert (
        'module.kernel (window 8), sm_90, triton 0: CompilationError: no' in capsys.readouterr().out
    )
