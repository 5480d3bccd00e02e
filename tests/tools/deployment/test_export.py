"""Exported backbones and segmentors compute what torch computes."""

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
from PIL import Image
from torch import nn

from swinv2_backbone import SwinTransformerV2
from tools.deployment import export
from tools.utils.errors import UserError
from tools.utils.export import compare, replace_adaptive_pools, write
from tools.utils.runtimes import load_exported

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
    call(export.main, *segmentor, '--out', out, '--size', 100, 136)
    assert 'differs from torch by at most' in capsys.readouterr().out
    (logits,) = onnxruntime.InferenceSession(out).get_outputs()
    assert logits.shape == [1, 5, 100, 136]
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(('opset', 'operators'), [(20, 0), (23, 8)])
def test_attention_is_one_operator_where_the_opset_has_it(tmp_path, opset, operators):
    onnx, path = pytest.importorskip('onnx'), tmp_path / 'model.onnx'
    model = SwinTransformerV2({**ARCH, 'embed_dims': 32}, window_size=3, pretrained_window_sizes=8)
    model, image = randomize_parameters(model).eval(), torch.randn(2, 3, 48, 48)
    write(model, image, ['map0', 'map1', 'map2', 'map3'], path, opset=opset)
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    # One for each of the four blocks that are not shifted, one for each mask of the one that is.
    assert nodes.count('Attention') == operators
    # The order of the tokens is a constant.
    assert 'ScatterND' not in nodes
    compare(model, [image], path, 'fp32')


FORMATS = {
    'onnx': 'model.onnx',
    'openvino': 'model.xml',
    'torchscript': 'model.pt',
    'torch_export': 'model.pt2',
}


def export_as(form, files, folder, *options):
    """Export a model in a format; the function that runs the file."""
    if form == 'openvino':
        pytest.importorskip('openvino')
    out = folder / FORMATS[form]
    call(export.main, *files, '--format', form, '--out', out, *options)
    return load_exported(out)


def slow(*forms):
    """All formats, of which some take half a minute."""
    return [pytest.param(f, marks=pytest.mark.slow) if f in forms else f for f in FORMATS]


@pytest.mark.parametrize('form', slow('openvino', 'torch_export'))
def test_one_file_of_a_backbone_takes_every_size(segmentor, tmp_path, form):
    # Whether a file equals torch at three sizes is checked by the tool itself.
    options = '--size', 72, 100, '--dynamic', '--part', 'backbone', '--window-size', 3
    run = export_as(form, segmentor, tmp_path, *options)
    maps = run(torch.rand(1, 3, 1, 33))
    shapes = [tuple(each.shape[1:]) for each in maps]
    assert shapes == [(16, 1, 9), (32, 1, 5), (64, 1, 3), (128, 1, 2)]


@pytest.mark.parametrize('form', slow('onnx', 'openvino'))
def test_a_whole_segmentor_is_exported(segmentor, tmp_path, form):
    run = export_as(form, segmentor, tmp_path, '--size', 64, 40)
    logits = run(torch.rand(1, 3, 64, 40))
    assert [tuple(each.shape) for each in logits] == [(1, 5, 64, 40)]
    kept = logits[0].clone()
    assert not run(torch.rand(1, 3, 64, 40))[0].equal(kept)
    assert logits[0].equal(kept), 'a call wrote into the result of the one before'


@pytest.mark.slow  # Half a minute each.
@pytest.mark.parametrize('form', FORMATS)
def test_one_file_of_a_segmentor_takes_every_size(segmentor, tmp_path, form):
    run = export_as(form, segmentor, tmp_path, '--size', 72, 100, '--dynamic')
    assert run(torch.rand(1, 3, 39, 6))[0].shape == (1, 5, 39, 6)


@pytest.mark.slow
@pytest.mark.parametrize('precision', ['bf16', 'int8'])
def test_openvino_computes_in_other_precisions(monkeypatch, segmentor, tmp_path, precision):
    compared = []
    monkeypatch.setattr(export, 'compare', lambda *args: compared.append(args[3]) or compare(*args))
    if precision == 'int8':
        pytest.importorskip('nncf')
    images = tmp_path / 'images'
    images.mkdir()
    for i in range(4):
        pixels = torch.randint(256, (50, 60, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(images / f'{i}.png')
    options = '--size', 64, '--precision', precision, '--calibration', images
    run = export_as('openvino', segmentor, tmp_path, *options)
    # (That of int8 is a gross check, which would let a mistake of the graph pass.)
    assert compared == (['fp32', 'int8'] if precision == 'int8' else ['bf16'])
    assert run(torch.rand(1, 3, 64, 64))[0].shape == (1, 5, 64, 64)
    assert sorted(x.name for x in tmp_path.iterdir()) == ['images', 'model.bin', 'model.xml']


@pytest.mark.parametrize('size', [(7, 16), (25, 33), (5, 4), (1, 1)])
@pytest.mark.parametrize('bins', [(1, 1), (3, 3), (6, 2)])
def test_replaced_pools_equal_adaptive_pools(size, bins):
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = nn.Sequential(nn.AdaptiveAvgPool2d(bins))
    found = replace_adaptive_pools(copy.deepcopy(expected))
    assert not any(isinstance(module, nn.AdaptiveAvgPool2d) for module in found.modules())
    torch.testing.assert_close(found(image), expected(image))


@pytest.mark.parametrize('suffix', ['.onnx', '.pt', '.pt2'])
def test_a_difference_is_noticed(tmp_path, suffix):
    model, image, path = nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 8, 8), tmp_path / f'x{suffix}'
    write(model, image, ['map'], path)
    compare(model, [image], path, 'fp32')
    with torch.no_grad():
        model.bias += 0.1
    with pytest.raises(UserError, match=r'differs from torch by .* at 8 x 8'):
        compare(model, [image], path, 'fp32')


def test_a_file_that_differs_is_not_kept(segmentor, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('tools.utils.export.TOLERANCE', 0.0)
    out = tmp_path / 'model.pt'
    options = '--format', 'torchscript', '--size', 64, '--part', 'backbone', '--out', out
    assert 'it was not kept' in error_line(capsys, export.main, *segmentor, *options)
    assert not list(tmp_path.iterdir())


MISTAKES = {
    'three sizes': (['--size', 1, 2, 3], '--size: got 3 numbers, allowed: a side, or height and w'),
    'another suffix': (['--out', 'x.pth'], "--out: got 'x.pth', allowed: a .onnx or"),
    'another precision': (['--precision', 'bf16'], '--precision: got bf16, allowed: fp32 for onnx'),
    'no images': (
        ['--format', 'openvino', '--out', 'x.xml', '--precision', 'int8'],
        '--precision: int8 needs --calibration DIR',
    ),
    'int8 for all sizes': (
        [
            '--format',
            'openvino',
            '--out',
            'x.xml',
            '--precision',
            'int8',
            '--dynamic',
            '--calibration',
            'images',
        ],
        '--precision: int8 needs a fixed size, drop --dynamic',
    ),
    'opset of another format': (
        ['--format', 'openvino', '--out', 'x.xml', '--opset', 20],
        '--opset: got 20 with --format openvino, allowed: with onnx',
    ),
    'suffix of another format': (['--format', 'openvino'], 'allowed: a .xml file'),
}


@pytest.mark.parametrize(('options', 'message'), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_in_one_line(segmentor, tmp_path, capsys, options, message):
    out = tmp_path / 'model.onnx'
    assert message in error_line(capsys, export.main, *segmentor, '--out', out, *options)
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
    assert 'refused by the safe loader' in error_line(capsys, export.main, *arguments)
    assert not (tmp_path / 'code_has_run').exists()


def test_checkpoint_that_does_not_fit_is_refused(segmentor, tmp_path, capsys):
    other, out = tmp_path / 'other.pth', tmp_path / 'model.onnx'
    torch.save({'state_dict': {'backbone.x': torch.ones(1)}}, other)
    message = error_line(capsys, export.main, segmentor[0], other, '--out', out)
    assert "the checkpoint does not fit the config's model" in message
    assert not out.exists()
