"""ONNX files of the backbone and of a whole segmentor give onnxruntime what torch computes."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.models import randomize_parameters

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
pytest.importorskip('mmseg')

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/segmentation/upernet_swinv2_tiny_shapes.py'


def export(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / 'tools/deployment/export_onnx.py', *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory):
    """A small UperNet: its config, and a checkpoint with random_parameter weights."""
    folder = tmp_path_factory.mktemp('segmentor')
    config, channels = folder / 'small.py', [16, 32, 64, 128]
    config.write_text(f"""
_base_ = {str(CONFIG)!r}
model = dict(
    backbone=dict(arch=dict(
        _delete_=True, embed_dims=16, depths=(2, 1, 1, 1), num_heads=(1, 2, 4, 8))),
    decode_head=dict(in_channels={channels}, channels=32),
    auxiliary_head=dict(in_channels=64, channels=16))
""")
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    randomize_parameters(model.backbone)
    torch.save({'state_dict': model.state_dict()}, folder / 'small.pth')
    return config, folder / 'small.pth'


@pytest.mark.parametrize('what', [[], ['--backbone']], ids=['segmentor', 'backbone'])
def test_onnxruntime_agrees(segmentor, tmp_path, what):
    import onnxruntime

    out = tmp_path / 'new' / 'model.onnx'
    result = export(*segmentor, '--out', out, '--size', '100', '136', *what)  # pads everywhere
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'onnxruntime and torch differ by' in result.stdout
    shapes = [each.shape for each in onnxruntime.InferenceSession(out).get_outputs()]
    if what:
        assert shapes == [[1, 16, 25, 34], [1, 32, 13, 17], [1, 64, 7, 9], [1, 128, 4, 5]]
    else:
        assert shapes == [[1, 5, 100, 136]]
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.slow  # Tracing with unknown sizes takes a minute each.
@pytest.mark.parametrize('what', [[], ['--backbone']], ids=['segmentor', 'backbone'])
def test_one_file_for_many_sizes(segmentor, tmp_path, what):
    import onnxruntime

    out = tmp_path / 'model.onnx'
    result = export(*segmentor, '--out', out, '--size', '512', '768', '--dynamic', *what)
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'compared at (512, 768) and (768, 1280)' in result.stdout
    (image,) = onnxruntime.InferenceSession(out).get_inputs()
    assert image.shape[:2] == [1, 3]
    assert all(isinstance(side, str) for side in image.shape[2:]), image.shape


@pytest.mark.parametrize('size', [(7, 16), (25, 33), (5, 4), (1, 1)])
@pytest.mark.parametrize('bins', [(1, 1), (3, 3), (6, 2)])
def test_pooling_without_fixed_bins(size, bins):
    from tools.deployment.export_onnx import without_fixed_bins

    image = torch.randn(2, 3, *size)
    wanted = nn.Sequential(nn.AdaptiveAvgPool2d(bins))
    found = without_fixed_bins(copy.deepcopy(wanted))
    assert not any(isinstance(module, nn.AdaptiveAvgPool2d) for module in found.modules())
    torch.testing.assert_close(found(image), wanted(image))


def test_a_difference_is_noticed(segmentor, tmp_path, monkeypatch):
    from tools.deployment import export_onnx

    cfg = Config.fromfile(segmentor[0])
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model).backbone.eval()
    randomize_parameters(model)
    image = torch.randn(1, 3, 64, 64)
    export_onnx.export(model, image, ['a', 'b', 'c', 'd'], tmp_path / 'model.onnx')
    assert export_onnx.largest_difference(model, image, tmp_path / 'model.onnx') <= 1e-5
    with torch.no_grad():
        model.layers[3].blocks[0].attn.logit_scale += 0.1
    assert export_onnx.largest_difference(model, image, tmp_path / 'model.onnx') > 1e-4


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--size', '1', '2', '3'], '--size: got 3 numbers, allowed: a side, or height and width'),
        (['--out', 'model.pt'], "--out: got 'model.pt', allowed: a .onnx file"),
    ],
)
def test_bad_arguments_on_one_line(segmentor, tmp_path, arguments, message):
    result = export(*segmentor, '--out', tmp_path / 'model.onnx', *arguments)
    assert result.returncode == 2
    assert message in result.stderr.strip().splitlines()[-1]


def test_sizes_that_a_file_of_many_sizes_cannot_be_traced_at(segmentor, tmp_path):
    result = export(*segmentor, '--out', tmp_path / 'model.onnx', '--dynamic', '--size', '256')
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith(
        "--size: got 256 x 256, allowed with --dynamic and the config's windows: multiples of "
        '256 x 256, from 2 to 62 times'
    )
    assert not (tmp_path / 'model.onnx').exists()


def test_a_checkpoint_that_does_not_fit(segmentor, tmp_path):
    torch.save({'state_dict': {'backbone.x': torch.ones(1)}}, tmp_path / 'other.pth')
    result = export(segmentor[0], tmp_path / 'other.pth', '--out', tmp_path / 'model.onnx')
    assert result.returncode == 1
    assert 'export_onnx.py: error:' in result.stderr.splitlines()[-1]
    assert not (tmp_path / 'model.onnx').exists()
