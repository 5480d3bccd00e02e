"""tools/analysis_tools/plot_position_bias.py: what is drawn, and its files."""

import pytest
import torch

from tests.helpers.models import SMALL_ARCH
from tests.helpers.scripts import call, error_line

Image = pytest.importorskip('PIL.Image')
pytest.importorskip('matplotlib')

from swinv2_backbone import SwinTransformerV2
from tools.analysis_tools import plot_position_bias


def test_files(known, tmp_path):
    options = '--window', '4', '6x3', '--layers', '1.0', '--compare', known.checkpoint
    out = tmp_path / 'bias.png', tmp_path / 'bias.pdf'
    arguments = known.checkpoint, '--pretrained-window-sizes', 8, *options, '--out', *out
    call(plot_position_bias.main, *arguments)
    assert Image.open(out[0]).width > 300
    assert out[1].read_bytes().startswith(b'%PDF')


def test_panels_share_one_color_scale():
    bias = torch.randn(4, 5, 4)
    rows = [
        plot_position_bias.Row('a', range(4), bias),
        plot_position_bias.Row('b', range(2), bias[:2] - 20),
    ]
    figure = plot_position_bias.draw(rows, 'title')
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(images) == 6
    scale = ((bias[:2] - 20).min().item(), bias.max().item())
    assert {image.get_clim() for image in images} == {scale}
    assert images[0].get_extent() == [-2.5, 1.5, 2.5, -2.5]


MISTAKES = {
    'no such layer': (['--layers', '4.0'], '--layers: got 4.0; the checkpoint has blocks'),
    'no layer': (['--layers', 'a'], "got 'a', allowed: STAGE.BLOCK"),
    'another file type': (['--out', 'x.jpg'], "--out: got 'x.jpg', allowed: a .png or .pdf file"),
    'windows per stage': (['--window', '8,8,8,8'], "--window: got '8,8,8,8', allowed: a side"),
    'another architecture': (['--compare', '{other}'], '--compare: got '),
}  # fmt: skip


@pytest.mark.parametrize(('options', 'message'), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_in_one_line(known, tmp_path, capsys, options, message):
    other = tmp_path / 'other.pth'
    torch.save(SwinTransformerV2({**SMALL_ARCH, 'num_heads': (1, 2, 4, 4)}).state_dict(), other)
    arguments = known.checkpoint, '--pretrained-window-sizes', 8, '--out', tmp_path / 'x.png'
    options = [option.format(other=other) for option in options]
    assert message in error_line(capsys, plot_position_bias.main, *arguments, *options)
    assert not (tmp_path / 'x.png').exists()
