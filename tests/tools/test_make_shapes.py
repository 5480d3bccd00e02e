"""The shapes data set: deterministic, consistent between its two tasks, written atomically."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip('cv2')
rle = pytest.importorskip('pycocotools.mask')

from tools.dataset_converters.make_shapes import CLASSES, make_shapes

SETTINGS = dict(train=6, val=3, size=64, seed=5)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'shapes'
    assert make_shapes(out, **SETTINGS)
    return out


def digest(folder):
    files = sorted(p for p in folder.rglob('*') if p.is_file())
    return [
        (p.relative_to(folder).as_posix(), hashlib.sha256(p.read_bytes()).hexdigest())
        for p in files
    ]


def test_same_arguments_same_files(shapes, tmp_path):
    make_shapes(tmp_path / 'again', **SETTINGS)
    assert digest(tmp_path / 'again') == digest(shapes)
    make_shapes(tmp_path / 'other', **{**SETTINGS, 'seed': 6})
    assert digest(tmp_path / 'other') != digest(shapes)


def test_masks_and_label_maps_agree(shapes):
    found = set()
    for split in ('train', 'val'):
        coco = json.loads((shapes / 'annotations' / f'instances_{split}.json').read_text())
        assert [c['name'] for c in coco['categories']] == list(CLASSES[1:])
        for entry in coco['images']:
            labels = cv2.imread(str(shapes / 'semseg' / split / entry['file_name']), -1)
            image = cv2.imread(str(shapes / 'images' / split / entry['file_name']))
            assert image.shape == (64, 64, 3)
            rebuilt = np.zeros_like(labels)
            for a in (a for a in coco['annotations'] if a['image_id'] == entry['id']):
                mask = rle.decode(a['segmentation']).astype(bool)
                assert not rebuilt[mask].any(), 'visible parts do not overlap'
                assert a['area'] == mask.sum() >= 16
                x, y, w, h = (int(v) for v in a['bbox'])
                assert mask[y : y + h, x : x + w].sum() == mask.sum()
                rebuilt[mask] = a['category_id']
                found.add(a['category_id'])
            assert np.array_equal(rebuilt, labels)
    assert found == {1, 2, 3, 4}


def test_splits_differ(shapes):
    first = [cv2.imread(str(shapes / 'images' / split / '00000.png')) for split in ('train', 'val')]
    assert not np.array_equal(*first)


def test_is_not_made_twice_nor_over_something_else(shapes):
    before = digest(shapes)
    assert not make_shapes(shapes, **SETTINGS)
    with pytest.raises(ValueError, match='holds something else'):
        make_shapes(shapes, **{**SETTINGS, 'train': 7})
    assert digest(shapes) == before


def test_goes_on_after_an_interruption(tmp_path):
    partial = tmp_path / 'shapes.partial' / 'images' / 'train'
    partial.mkdir(parents=True)
    (partial / '00000.png').write_bytes(b'half')
    assert make_shapes(tmp_path / 'shapes', **SETTINGS)
    assert not (tmp_path / 'shapes.partial').exists()


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (['--size', '8'], '--size: got 8, allowed: at least 32'),
        (['--train', '0'], '--train: got 0'),
        (['--seed', '-1'], '--seed: got -1'),
    ],
)
def test_bad_options(tmp_path, option, message):
    script = Path(__file__).parents[2] / 'tools/dataset_converters/make_shapes.py'
    result = subprocess.run(
        [sys.executable, script, '--out', tmp_path / 'x', *option], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / 'x').exists()
