"""The number of pixels of a compressed mask, and what is wrong with one, without decoding it."""

import numpy as np
import pytest

mask_api = pytest.importorskip('pycocotools.mask')

from tools.data import mask_checks
from tools.data.mask_checks import mask_problems, run_totals


def encoded(mask):
    return mask_api.encode(np.asfortranarray(mask, np.uint8))['counts'].decode()


def random_masks(rng, number):
    """Of random sizes and densities; some all 0 or all 1."""
    for index in range(number):
        size = rng.integers(1, 60, 2)
        density = rng.random() if index % 4 else rng.integers(0, 2)
        yield rng.random(size) < density


def test_the_total_is_the_number_of_pixels(monkeypatch):
    monkeypatch.setattr(mask_checks, '_AT_ONCE', 100)
    masks = [*random_masks(np.random.default_rng(0), 250), np.zeros((3000, 5000))]
    masks[-1][100:200, 3000:] = 1  # Runs of 22 bits.
    assert run_totals([encoded(mask) for mask in masks]).tolist() == [m.size for m in masks]


def test_a_string_that_is_cut_has_another_total_and_changes_no_other():
    rng = np.random.default_rng(0)
    masks = [rng.random((20, 30)) < 0.5 for _ in range(8)]
    strings = [encoded(mask) for mask in masks]
    strings[3] = strings[3][:-1]
    totals = run_totals(strings)
    assert totals[3] != 600
    assert (np.delete(totals, 3) == 600).all()


@pytest.mark.parametrize('text', ['', 'é', ' ', '\x7f', 'P', '0P'])
def test_strings_that_are_no_runs(text):
    """P says that more follows."""
    assert run_totals([text, encoded(np.ones((3, 4)))]).tolist() == [-1, 12]


def test_no_masks():
    assert run_totals([]).tolist() == []
    assert list(mask_problems([], [])) == []


def test_masks_of_both_kinds_keep_their_index():
    good = dict(size=[3, 4], counts=encoded(np.ones((3, 4))))
    masks = [good, [[1, 1, 2, 2]], dict(good, counts='0'), [[1, 1, 2, 2, 3, 1]], 'x', good]
    found = {index: kind for index, kind, _ in mask_problems(masks, [(4, 3)] * 6)}
    assert found == {
        1: 'polygons with fewer than 3 points',
        2: 'RLE that does not fit',
        4: 'malformed masks',
    }
