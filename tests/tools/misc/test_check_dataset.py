"""tools/misc/check_dataset.py: all faults at once, their number as the exit code, and as JSON."""

import json
import random
import re
import shutil

import numpy as np
import pytest
from PIL import Image

for toolbox in ('mmcv', 'mmdet', 'mmseg', 'pycocotools'):
    pytest.importorskip(toolbox)

from tests.helpers.scripts import ROOT, call, error_line
from tools.misc import check_dataset

NUCLEI = ROOT.parent / 'shared/data/nuclei'
CONFIGS = {
    'detection': ROOT / 'configs/detection/mask_rcnn_swinv2_tiny_nuclei.py',
    'segmentation': ROOT / 'configs/segmentation/upernet_swinv2_tiny_nuclei.py',
}


def run(config, *args) -> int:
    with pytest.raises(SystemExit) as ended:
        call(check_dataset.main, config, *args)
    return ended.value.code


@pytest.fixture
def spoiled(tasks, tmp_path):
    """A copy of the small data set with three bad images in training and one in validation."""
    shutil.copytree(tasks.data, tmp_path / 'shapes')
    for name in ('train/00001', 'train/00003', 'train/00004', 'val/00001'):
        path = tmp_path / f'shapes/images/{name}.png'
        path.write_bytes(path.read_bytes()[:200])
    (tmp_path / 'shapes/semseg/train/00006.png').unlink()
    return tmp_path / 'shapes'


def options(folder):
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    return ['--cfg-options', *(f'{loader}.dataset.data_root={folder}' for loader in loaders)]


def test_good_data_passes(tasks, capsys):
    for config in tasks.configs.values():
        assert run(config, '--workers', 2) == 0
        output, progress = capsys.readouterr()
        assert output.endswith('0 errors, 0 warnings\n')
        assert 'train_dataloader: ' in output
        assert 'test_dataloader' not in output  # The data of val_dataloader.
        assert '8/8' in progress


def test_all_faults_are_grouped_and_written(tasks, spoiled, tmp_path, capsys):
    out = tmp_path / 'reports/report.json'
    config = tasks.configs['segmentation']
    assert run(config, '--workers', 2, '--out', out, *options(spoiled)) == 1
    output = capsys.readouterr().out
    assert '  error: images that cannot be read: 3\n' in output
    assert '  error: images that cannot be read: 1\n' in output
    assert '  error: missing label maps: 1\n' in output
    report = json.loads(out.read_text())
    assert report['errors'] == 5
    assert [fault['loader'] for fault in report['faults']].count('val_dataloader') == 1
    assert any('val/00001.png' in fault['message'] for fault in report['faults'])


def test_a_split_alone(tasks, spoiled, capsys):
    config = tasks.configs['detection']
    assert run(config, '--split', 'val', '--workers', 1, *options(spoiled)) == 1
    assert 'train' not in capsys.readouterr().out.replace(str(spoiled.parent), '')


def test_many_of_a_kind_are_counted(tasks, spoiled, capsys, monkeypatch):
    monkeypatch.setattr(check_dataset, '_SHOWN', 2)
    run(tasks.configs['detection'], '--split', 'train', '--workers', 1, *options(spoiled))
    assert '    ... and 1 more\n' in capsys.readouterr().out


def test_data_that_is_missing_is_reported(tasks, tmp_path, capsys):
    config = tasks.configs['segmentation']
    assert run(config, '--split', 'train', *options(tmp_path / 'nowhere')) == 1
    assert 'error: missing data: ' in capsys.readouterr().out


def test_a_split_that_the_config_lacks_is_refused(tasks, tmp_path, capsys):
    config = tmp_path / 'x.py'
    config.write_text(
        f"_base_ = '{tasks.configs['segmentation']}'\nval_dataloader = val_cfg = None\n"
        'val_evaluator = None\n'
    )
    line = error_line(capsys, check_dataset.main, config, '--split', 'val')
    assert '--split val: the config lacks val_dataloader' in line


# --- real images ----------------------------------------------------------------------------------


def cut(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def flip_bits(path, rng):
    """In the middle of the compressed pixels, which have a checksum."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content) // 3, len(content) // 2)] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def crop(path, rng):
    with Image.open(path) as image:
        image.crop((0, 0, image.width - rng.randrange(1, 9), image.height)).save(path)


def remove(path, rng):
    path.unlink()


def set_value(path, rng):
    labels = np.array(Image.open(path))
    labels.flat[rng.randrange(labels.size)] = rng.randrange(2, 255)
    Image.fromarray(labels).save(path)


def edit_annotation(path, rng):
    content = json.loads(path.read_text())
    each = rng.choice(content['annotations'])
    change = rng.choice(('bbox', 'category_id', 'image_id', 'id', 'counts'))
    if change == 'bbox':
        each['bbox'][rng.randrange(4)] = float('nan')
    elif change == 'counts':
        each['segmentation']['counts'] = each['segmentation']['counts'][: -rng.randrange(1, 4)]
    elif change == 'id':
        each['id'] = next(a['id'] for a in content['annotations'] if a is not each)
    else:
        each[change] = 10**6 + rng.randrange(99)
    path.write_text(json.dumps(content))


KINDS = {
    'detection': [
        ('images/*/*.png', [cut, flip_bits, crop, remove]),
        ('annotations/*.json', [edit_annotation]),
    ],
    'segmentation': [
        ('images/*/*.png', [cut, flip_bits, crop, remove]),
        ('semseg/*/*.png', [cut, flip_bits, crop, remove, set_value]),
    ],
}


@pytest.mark.skipif(not NUCLEI.is_dir(), reason='the real data set is not here')
@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize('task', CONFIGS)
def test_real_data_passes_and_random_faults_in_it_are_found(tmp_path, task, seed):
    root = tmp_path / 'nuclei'
    arguments = ['--workers', 1, '--out', tmp_path / 'r.json', '--cfg-options', f'data_root={root}']
    shutil.copytree(NUCLEI, root)
    assert run(CONFIGS[task], *arguments) == 0
    assert json.loads((tmp_path / 'r.json').read_text())['faults'] == []

    rng = random.Random(seed)
    spoiled = {}
    while len(spoiled) < 5:
        pattern, changes = rng.choice(KINDS[task])
        path = rng.choice(sorted(root.glob(pattern)))
        if path.stem not in {other.stem for other in spoiled}:
            change = rng.choice(changes)
            change(path, rng)
            spoiled[path] = change.__name__
    assert run(CONFIGS[task], *arguments) == 1
    report = json.loads((tmp_path / 'r.json').read_text())
    messages = ' '.join(fault['message'] for fault in report['faults'])
    for path, change in spoiled.items():
        # Of mmseg, an image that was removed leaves a label map without image: a warning.
        assert re.search(rf'/{path.stem}\.', messages), (path, change)
