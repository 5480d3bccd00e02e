"""tools/analysis_tools/plot_features.py: its file and its errors."""

import pytest
import torch

from tests.helpers.scripts import call, error_line

Image = pytest.importorskip('PIL.Image')
pytest.importorskip('matplotlib')

from tools.analysis_tools import plot_features


def test_file(known, tmp_path):
    out, image = tmp_path / 'features.png', known.images / 'class0/0.png'
    arguments = known.checkpoint, image, '--pretrained-window-sizes', 8, '--out', out
    call(plot_features.main, *arguments, '--windows', '3', '8', '--size', 100)
    assert Image.open(out).width > 500


def test_distance():
    maps = torch.randn(16, 6, 8)
    assert plot_features.distance(maps, maps) == 0
    assert plot_features.distance(2 * maps, maps) == pytest.approx(1)


def test_image_that_is_missing(known, tmp_path, capsys):
    arguments = known.checkpoint, 'nothing.png', '--pretrained-window-sizes', 8
    message = error_line(capsys, plot_features.main, *arguments, '--out', tmp_path / 'x.png')
    assert "image 'nothing.png' cannot be read" in message
