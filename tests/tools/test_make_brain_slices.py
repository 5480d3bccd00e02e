"""Slices of a volume as a segmentation data set."""

import cv2
import numpy as np
import pytest

from tests.helpers.scripts import call, error_line
from tools.dataset_converters import make_brain_slices


def test_slices_and_their_labels(tmp_path):
    """A volume with white matter in a box, gray matter on one side of it."""
    image, gray, white = np.zeros((3, 20, 30, 40))
    white[5:10, 10:20, 3:30] = image[5:10, 10:20, 3:30] = 0.8
    gray[5:10, 20:22, 3:30] = 0.9
    counts = make_brain_slices.write_slices(tmp_path, image, gray, white)
    # Heights 3 to 7 and 16 to 23; 10 to 13 and 26 to 29.
    assert counts == dict(train=13, val=8)
    names = {path.name for path in (tmp_path / 'images/val').iterdir()}
    assert names == {path.name for path in (tmp_path / 'semseg/val').iterdir()}
    assert names == {f'{height:03d}.png' for height in (10, 11, 12, 13, 26, 27, 28, 29)}
    shown = cv2.imread(str(tmp_path / 'images/train/003.png'), cv2.IMREAD_UNCHANGED)
    labels = cv2.imread(str(tmp_path / 'semseg/train/003.png'), cv2.IMREAD_UNCHANGED)
    assert shown.shape == labels.shape == (30, 20)
    assert set(shown[10:20, 5:10].ravel()) == {204}
    expected = np.zeros((30, 20))
    expected[10:20, 5:10] = 2
    expected[8:10, 5:10] = 1
    assert (labels == expected).all()


def test_the_template_that_nilearn_ships(tmp_path, capsys):
    pytest.importorskip('nilearn')
    out = tmp_path / 'brain'
    call(make_brain_slices.main, '--out', out)
    assert '67 training and 32 validation images' in capsys.readouterr().out
    for path in (out / 'semseg/train').iterdir():
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert set(np.unique(labels)) == {0, 1, 2}
    assert f"--out: '{out}' exists" in error_line(capsys, make_brain_slices.main, '--out', out)
