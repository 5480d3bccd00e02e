"""ONNX files of the backbone and of a whole segmentor give onnxruntime what torch computes."""

import copy
import os

import pytest
import torch

from tests.helpers.models import randomize_parameters
from tests.helpers.scripts import ROOT, call, error_line

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
pytest.importorskip('mmseg')

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from swinv2_backbone import SwinTransformerV2
from tools.deployment import export_onnx
from tools.utils.onnx_export import export, largest_difference, replace_adaptive_pools, size_steps

ARCH = dict(embed_dims=16, depths=(2, 1, 1, 1), num_heads=(1, 2, 4, 8))


@pytest.fixture(scope='session')
def segmentor(tmp_path_factory):
    """A small UperNet: its config, and a checkpoint with random weights."""
    folder = tmp_path_factory.mktemp('segmentor')
    config, channels = folder / 'small.py', [16, 32, 64, 128]
    config.write_text(f"""
_base_ = {str(ROOT / 'configs/segmentation/upernet_swinv2_tiny_shapes.py')!r}
model = dict(
    backbone=dict(arch=dict(_delete_=True, **{ARCH})),
    decode_head=dict(in_channels={channels}, channels=16),
    auxiliary_head=dict(in_channels=64, channels=16))
""")
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    randomize_parameters(model.backbone)
    torch.save({'state_dict': model.state_dict()}, folder / 'small.pth')
    return config, folder / 'small.pth'


def test_onnxruntime_computes_the_same_logits(segmentor, tmp_path, capsys):
    out = tmp_path / 'new' / 'model.onnx'
    # A size that needs padding at every stage.
    call(export_onnx.main, *segmentor, '--out', out, '--size', 100, 136)
    assert 'onnxruntime and torch differ by' in capsys.readouterr().out
    (logits,) = onnxruntime.InferenceSession(out).get_outputs()
    assert logits.shape == [1, 5, 100, 136]
    assert list(out.parent.iterdir()) == [out]


def test_one_backbone_file_takes_many_sizes(segmentor, tmp_path, capsys):
    """The smallest windows make the smallest images: 4 pixels * 2 tokens * 8 = 64 per step."""
    out = tmp_path / 'model.onnx'
    small = ['--size', 128, 192, '--cfg-options', 'model.backbone.window_size=2']
    small += ['model.backbone.pretrained_window_sizes=8']
    call(export_onnx.main, *segmentor, '--out', out, '--dynamic', '--backbone', *small)
    printed = capsys.readouterr().out
    assert 'takes multiples of 64 x 64 pixels' in printed
    assert 'compared at (128, 192) and (192, 320)' in printed
    session = onnxruntime.InferenceSession(out)
    (image,) = session.get_inputs()
    assert image.shape[:2] == [1, 3]
    assert all(isinstance(side, str) for side in image.shape[2:]), image.shape
    maps = session.run(None, {'image': torch.rand(1, 3, 256, 128).numpy()})
    assert [each.shape[1:] for each in maps] == [
        (16, 64, 32),
        (32, 32, 16),
        (64, 16, 8),
        (128, 8, 4),
    ]


@pytest.mark.slow  # A minute each, because the windows of 8 are traced with unknown sizes.
@pytest.mark.parametrize('options', [[], ['--backbone']], ids=['segmentor', 'backbone'])
def test_one_file_takes_many_sizes_at_window_8(segmentor, tmp_path, capsys, options):
    out = tmp_path / 'model.onnx'
    call(export_onnx.main, *segmentor, '--out', out, '--size', 512, 768, '--dynamic', *options)
    assert 'compared at (512, 768) and (768, 1280)' in capsys.readouterr().out
    (image,) = onnxruntime.InferenceSession(out).get_inputs()
    assert all(isinstance(side, str) for side in image.shape[2:]), image.shape


@pytest.mark.parametrize('size', [(7, 16), (25, 33), (5, 4), (1, 1)])
@pytest.mark.parametrize('bins', [(1, 1), (3, 3), (6, 2)])
def test_replaced_pools_equal_adaptive_pools(size, bins):
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = nn.Sequential(nn.AdaptiveAvgPool2d(bins))
    found = replace_adaptive_pools(copy.deepcopy(expected))
    assert not any(isinstance(module, nn.AdaptiveAvgPool2d) for module in found.modules())
    torch.testing.assert_close(found(image), expected(image))


@pytest.mark.parametrize(
    ('window', 'steps'), [(8, (256, 256)), ((4, 6), (128, 192)), ([3, 2, 1, 1], (96, 96))]
)
def test_steps_need_no_padding(window, steps):
    assert size_steps(SwinTransformerV2(ARCH, window_size=window)) == steps


def test_a_difference_is_noticed(tmp_path):
    model, image = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    export(model, image, ['map'], tmp_path / 'model.onnx')
    assert largest_difference(model, image, tmp_path / 'model.onnx') <= export_onnx.TOLERANCE
    with torch.no_grad():
        model.bias += 0.1
    assert largest_difference(model, image, tmp_path / 'model.onnx') > export_onnx.TOLERANCE


MISTAKES = {
    'three sizes': (['--size', 1, 2, 3], '--size: got 3 numbers, allowed: a side, or height and w'),
    'another suffix': (['--out', 'x.pt'], "--out: got 'x.pt', allowed: a .onnx file"),
    'a size that cannot be traced': (
        ['--dynamic', '--size', 256],
        "--size: got 256 x 256, allowed with --dynamic and the config's windows: multiples of "
        '256 x 256, from 2 to 62 times',
    ),
}


@pytest.mark.parametrize(('options', 'message'), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_in_one_line(segmentor, tmp_path, capsys, options, message):
    out = tmp_path / 'model.onnx'
    assert message in error_line(capsys, export_onnx.main, *segmentor, '--out', out, *options)
    assert not out.exists()


class MakesFolder:
    """Unpickling it makes the folder that PICKLE_TRAP names."""

    def __reduce__(self):
        return os.mkdir, (os.environ['PICKLE_TRAP'],)


def test_no_code_of_a_checkpoint_is_run(segmentor, tmp_path, monkeypatch, capsys):
    """Whatever the environment says: mmengine's own loader leaves that to torch."""
    monkeypatch.setenv('PICKLE_TRAP', str(tmp_path / 'code_has_run'))
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    torch.save({'state_dict': {}, 'meta': MakesFolder()}, tmp_path / 'evil.pth')
    arguments = segmentor[0], tmp_path / 'evil.pth', '--out', tmp_path / 'model.onnx'
    assert 'refused by the safe loader' in error_line(capsys, export_onnx.main, *arguments)
    assert not (tmp_path / 'code_has_run').exists()


def test_checkpoint_that_does_not_fit_is_refused(segmentor, tmp_path, capsys):
    other, out = tmp_path / 'other.pth', tmp_path / 'model.onnx'
    torch.save({'state_dict': {'backbone.x': torch.ones(1)}}, other)
    message = error_line(capsys, export_onnx.main, segmentor[0], other, '--out', out)
    assert "the checkpoint does not fit the config's model" in message
    assert not out.exists()
