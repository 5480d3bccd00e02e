"""The benchmark's script from end to end, beside stubs of which each fails in its own way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('matplotlib')

ROOT = Path(__file__).parents[3]
STUBS = {
    'timm': 'import os, signal, sys\nprint("last line", file=sys.stderr, flush=True)\n'
    'os.kill(os.getpid(), signal.SIGKILL)',
    'transformers': 'raise ModuleNotFoundError("No module named \'transformers\'")',
    'torchvision': 'print("{\\"seconds\\": 0}")\nraise ImportError("wrong\\nbuild")',
}


@pytest.fixture(scope='module')
def run_with_stubs(tmp_path_factory):
    """The process, which has ended, and the folder of its results."""
    folder = tmp_path_factory.mktemp('benchmark')
    for name, text in STUBS.items():
        (folder / 'implementations/hf' / name).mkdir(parents=True)
        (folder / 'implementations/hf' / name / '__init__.py').write_text(text)
    process = subprocess.run(
        [
            sys.executable,
            ROOT / 'tools/analysis_tools/benchmark.py',
            '--sizes',
            '64',
            '--windows',
            '8',
            '--rounds',
            '3',
            '--arch',
            'mini',
            '--threads',
            '1',
            '--implementations',
            *STUBS,
            '--implementations-folder',
            'implementations',
            '--out',
            'out',
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert process.returncode == 0, process.stderr
    return process, folder / 'out'


def test_implementations_that_fail_are_named_and_the_others_go_on(run_with_stubs):
    process, out = run_with_stubs
    (case,) = json.loads((out / 'results.json').read_text())['cases']
    assert case['left_out'] == {
        'timm': 'its process was ended by SIGKILL (out of memory?): last line',
        'transformers': "not installed (No module named 'transformers')",
        'torchvision': 'ImportError: wrong',
    }
    assert list(case['implementations']) == ['ours', 'gemm']
    assert all(len(each['seconds']) == 3 for each in case['implementations'].values())
    for name, why in case['left_out'].items():
        assert f'{name} is left out: {why}' in process.stdout
        assert f'- {name} is left out: {why}' in (out / 'results.md').read_text()


def test_results_are_written(run_with_stubs):
    process, out = run_with_stubs
    results = json.loads((out / 'results.json').read_text())
    machine, case = results['machine'], results['cases'][0]
    assert machine['threads'] == 1
    assert machine['versions']['torch'] == torch.__version__
    assert '--arch mini' in machine['command']
    assert case['implementations']['ours']['bytes'] > 0
    assert case['multiply_adds'] == case['implementations']['gemm']['recorded'] > 0
    assert case['speed_ratio'] is None, 'there is nothing to compare with'
    assert '| ours |' in (out / 'results.md').read_text()
    assert case['name'] in process.stdout
    assert (out / 'chart.png').read_bytes().startswith(b'\x89PNG')
    assert {path.name for path in out.iterdir()} == {'results.json', 'results.md', 'chart.png'}
