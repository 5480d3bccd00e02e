"""mmcv without compiled operators: mmseg trains the same, and what needs one says so."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip('mmseg')
ROOT = Path(__file__).parents[3]
LOSSES = """
import torch
from mmengine.config import Config
from tools.utils.example_batch import build_model, example_batch
torch.set_num_threads(1)
cfg = Config.fromfile('{config}')
torch.manual_seed(0)
model = build_model(cfg)
losses, _ = model.parse_losses(
    model(**model.data_preprocessor(example_batch(cfg, (64, 64), 2), training=True), mode='loss'))
losses.backward()
print(losses.item(), model.backbone.patch_embed.proj.weight.grad.double().sum().item())
"""
NMS = """
import torch
import tools
import mmdet.models
from mmcv.ops import nms, point_sample
print(point_sample(torch.ones(1, 1, 4, 4), torch.full((1, 1, 2), 0.5)).item())
nms(torch.rand(1, 4), torch.rand(1), 0.5)
"""


@pytest.fixture(scope='module')
def lite(tmp_path_factory) -> Path:
    """A folder with the installed mmcv, without its extension."""
    folder = tmp_path_factory.mktemp('lite')
    installed = find_spec('mmcv').submodule_search_locations[0]
    shutil.copytree(
        installed, folder / 'mmcv', ignore=shutil.ignore_patterns('_ext*', '__pycache__', '.mim')
    )
    return folder


def run(code: str, path: str | Path = '') -> subprocess.CompletedProcess:
    env = {**os.environ, 'PYTHONPATH': str(path)}
    return subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True, text=True
    )


def test_without_the_stand_in_it_cannot_be_imported(lite):
    result = run('import mmcv.ops', lite)
    assert "No module named 'mmcv._ext'" in result.stderr


def test_upernet_trains_the_same(lite):
    code = LOSSES.format(config='configs/segmentation/upernet_swinv2_tiny_shapes.py')
    with_operators, without = run(code), run(code, lite)
    assert without.returncode == 0, without.stderr
    losses = [each.stdout.splitlines()[-1] for each in (with_operators, without)]
    assert losses[0] == losses[1]
    assert float(losses[0].split()[0]) > 0


def test_an_operator_that_is_called_is_named(lite):
    result = run(NMS, lite)
    assert result.stdout == '1.0\n', result.stderr
    assert result.stderr.splitlines()[-1].endswith(
        "UserError: the model needs mmcv's compiled operator 'nms', and mmcv is installed without "
        'its operators: run `make env`, with STACK=onedl for the forks, or see docs/installation.md'
    )


def test_compiled_operators_are_used_where_they_are():
    result = run('import tools, mmcv._ext; print(mmcv._ext.__file__)')
    assert result.stdout.endswith('.so\n')
