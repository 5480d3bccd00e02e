"""The quickstart and the tutorials, followed word for word in a folder like a fresh clone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from tests.helpers.checkpoint_files import save_official
from tests.helpers.scripts import free_port
from tests.helpers.slurm import write_stand_ins

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'docs/quickstart.md', *sorted(ROOT.glob('docs/tutorials/[!R]*.md'))]
NOT_RUN = 'not run by the tests'
# Of a page: what it needs beside the stack, and files that it says are there at the end.
NEEDED = {'deploy': ('onnxscript', 'onnxruntime', 'openvino', 'nncf')}
MADE = {
    'quickstart': ('predictions/drawn/00000.png', 'predictions/labels/00000.png'),
    'own_data': (
        'work_dirs/browse/0000_00000.png',
        'work_dirs/upernet_mine/curves.png',
        'work_dirs/upernet_mine/predictions/drawn/00000.png',
        'work_dirs/mask_rcnn_mine/iter_20.pth',
    ),
    'larger_window': ('work_dirs/window_8/iter_60.pth', 'work_dirs/window_16/iter_20.pth'),
    'convert_weights': (
        'checkpoints/for_transformers/config.json',
        'checkpoints/for_timm.pth',
        'checkpoints/trained_backbone/config.json',
    ),
    'cluster': (
        'work_dirs/two_processes/iter_10.pth',
        'work_dirs/slurm/iter_10.pth',
        'work_dirs/slurm_batch/iter_10.pth',
    ),
    'deploy': ('work_dirs/deploy/model_int8.xml', 'work_dirs/deploy/predictions/drawn/00000.png'),
}


def blocks(page):
    """The code blocks of a page that are to be run: their language and their lines."""
    found = re.findall(r'^```(\w*)\n(.*?)^```$', page.read_text(), re.MULTILINE | re.DOTALL)
    assert {language for language, _ in found} <= {'bash', 'python', 'text'}
    return [(x, code) for x, code in found if x != 'text' and f'# {NOT_RUN}\n' not in code]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with what the pages use of a clone, whose Python is this one."""
    for name in ('configs', 'tools', 'swinv2_backbone'):
        ignored = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / name, tmp_path / 'clone' / name, ignore=ignored)
    write_stand_ins(tmp_path / 'slurm')
    folders = Path(sys.executable).parent, tmp_path / 'slurm', os.environ['PATH']
    monkeypatch.setenv('PATH', os.pathsep.join(map(str, folders)))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    monkeypatch.setenv('MASTER_PORT', str(free_port()))
    monkeypatch.delenv('PYTHONPATH', raising=False)
    return tmp_path / 'clone'


def follow(page, clone):
    """Save the files and run the lines and scripts of a page, in their order."""
    for language, code in blocks(page):
        named = re.match(r'# ([\w/]+\.py)\n', code)
        if language == 'python' and named:
            (clone / named[1]).write_text(code)
            continue
        command = ['bash', '-euc', code] if language == 'bash' else [sys.executable, '-c', code]
        result = subprocess.run(command, cwd=clone, capture_output=True, text=True)
        assert result.returncode == 0, f'{code}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}'
    missing = [path for path in MADE[page.stem] if not (clone / path).is_file()]
    assert missing == []


def test_pages_have_blocks():
    assert [page.stem for page in PAGES if not blocks(page)] == []
    assert {page.stem for page in PAGES} == set(MADE)


@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_page(page, clone):
    for module in ('mmdet', 'mmseg', *NEEDED.get(page.stem, ())):
        pytest.importorskip(module)
    if page.stem == 'convert_weights':  # in place of the download
        torch.manual_seed(0)
        (clone / 'checkpoints').mkdir()
        model = SwinTransformerV2(arch='tiny', window_size=8, pretrained_window_sizes=8)
        save_official(model, clone / 'checkpoints/swinv2_tiny.pth')
    follow(page, clone)
