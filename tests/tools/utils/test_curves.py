"""The logs of trainings are read over kills, resumptions and repetitions."""

import json
from pathlib import Path

import pytest

from tools.utils.curves import draw_training, is_better_low, main_keys, read_scalars
from tools.utils.errors import UserError


def write(folder, *records, end='\n'):
    """A scalars.json; a number is a training record of that iteration, a pair one of validation."""
    lines = [
        dict(loss=1 / r, lr=0.1, time=2.0, iter=r, step=r)
        if isinstance(r, int)
        else dict(mIoU=r[1], time=9.0, step=r[0])
        for r in records
    ]
    file = folder / 'vis_data/scalars.json'
    file.parent.mkdir(parents=True)
    file.write_text('\n'.join(map(json.dumps, lines)) + end)
    return file


def test_iterations_of_validations(tmp_path):
    """The step of a validation is an iteration, or an epoch."""
    for name, steps in (('iterations', (4, 8)), ('epochs', (1, 2))):
        first, second = ((step, value) for step, value in zip(steps, (0.3, 0.5), strict=True))
        file = write(tmp_path / name, 2, 4, first, 6, 8, second)
        scalars = read_scalars(file)
        assert scalars.val == {'mIoU': [(4, 0.3), (8, 0.5)]}
        assert scalars.curve('loss') == [(2, 1 / 2), (4, 1 / 4), (6, 1 / 6), (8, 1 / 8)]
        assert scalars.curve('time') == [(i, 2.0) for i in (2, 4, 6, 8)]
        assert scalars.curve('nothing') == []


def test_resumed_and_repeated_runs(tmp_path):
    write(tmp_path / '20260101_000000', 2, 4, (4, 0.1), 6, end='\n{"loss": 1.0, "it')  # killed
    write(tmp_path / '20260101_000001', 6, 8, (8, 0.2))
    scalars = read_scalars(tmp_path)
    assert [i for i, _ in scalars.curve('loss')] == [2, 4, 6, 8]
    assert scalars.val['mIoU'] == [(4, 0.1), (8, 0.2)]
    write(tmp_path / '20260101_000002', 2, (2, 0.7))
    assert read_scalars(tmp_path).val['mIoU'] == [(2, 0.7)]
    assert read_scalars(tmp_path).curve('loss') == [(2, 1 / 2)]


@pytest.mark.parametrize('step', [8, 2], ids=['iterations', 'epochs'])
@pytest.mark.parametrize('killed', ['in the validation', 'later'])
def test_a_resumed_run_may_begin_with_a_validation(tmp_path, step, killed):
    later = [(step, 0.2), 10] if killed == 'later' else []
    write(tmp_path / '20260101_000000', 2, 4, (step // 2, 0.1), 6, 8, *later)
    write(tmp_path / '20260101_000001', (step, 0.3), 10, 12, (step * 3 // 2, 0.4))
    scalars = read_scalars(tmp_path)
    assert [i for i, _ in scalars.curve('loss')] == [2, 4, 6, 8, 10, 12]
    assert scalars.val['mIoU'] == [(4, 0.1), (8, 0.3), (12, 0.4)]


def test_what_is_no_log(tmp_path):
    with pytest.raises(UserError, match=r'no scalars\.json'):
        read_scalars(tmp_path)
    (tmp_path / 'scalars.json').write_text('[1]\n{}\n')
    with pytest.raises(UserError, match='line 1 is no record'):
        read_scalars(tmp_path / 'scalars.json')


def test_keys(tmp_path):
    scalars = read_scalars(write(tmp_path, 2, (2, 0.5)))
    assert main_keys([scalars]) == ['loss', 'mIoU']
    scalars.val |= {'coco/bbox_mAP': [(2, 0.1)], 'coco/bbox_mAP_50': [(2, 0.2)]}
    assert main_keys([scalars]) == ['loss', 'mIoU', 'coco/bbox_mAP']
    assert [is_better_low(key) for key in ('aux.loss_ce', 'time', 'mIoU')] == [True, True, False]


def test_curves_are_drawn(tmp_path):
    image = pytest.importorskip('PIL.Image')
    scalars = read_scalars(write(tmp_path, 2, 4, (4, 0.5)))
    sizes = []
    for name in ('all', 'no_metrics', 'nothing'):
        path = Path(tmp_path / 'new' / f'{name}.png')
        draw_training(scalars, path, 'title')
        with image.open(path) as drawn:
            sizes.append(drawn.height)
        (scalars.train if name == 'no_metrics' else scalars.val).clear()
    assert sizes[0] > sizes[1] > sizes[2], 'a panel for losses, metrics and the learning rate'
