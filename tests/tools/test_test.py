"""tools/test.py: its table and files, its options, and mistakes that end in one line."""

import importlib.util
import json
import pickle

import pytest

from tests.helpers.scripts import ROOT, call, error_line

for toolbox in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(toolbox)

from tools import test

TASKS = ('segmentation', 'detection')


def results(work_dir):
    return json.loads((work_dir / 'test_results.json').read_text())['results']


@pytest.mark.parametrize('task', TASKS)
def test_table_predictions_and_drawings(tasks, tmp_path, capfd, task):
    segmentation = task == 'segmentation'
    out, shown = tmp_path / ('labels' if segmentation else 'predictions.pkl'), tmp_path / 'shown'
    arguments = tasks.configs[task], tasks.checkpoints[task], '--work-dir', tmp_path, '--baseline'
    call(test.main, *arguments, '--show-dir', shown, '--out', out)
    written = results(tmp_path)
    assert list(written) == ['model', 'most frequent class']
    header, *rows = capfd.readouterr().out.split(f'\n{tasks.checkpoints[task]}\n')[1].splitlines()
    assert header.split() == (['mIoU', 'mAcc', 'aAcc'] if segmentation else ['AP', 'AP50', 'AP75'])
    if segmentation:
        assert rows[0].split()[:2] == ['model', f'{written["model"]["mIoU"]:.3f}']
        assert len(list(out.glob('*.png'))) == 3
    else:
        assert rows[1].split()[:3] == ['model', 'segm', f'{written["model"]["coco/segm_mAP"]:.3f}']
        assert len(pickle.loads(out.read_bytes())) == 3
    assert rows[-2].startswith('most frequent class')
    assert rows[-1] == f'-> {tmp_path / "test_results.json"}'
    assert len(list(shown.rglob('*.png'))) == 3

    call(test.main, *arguments, '--tta')
    augmented = results(tmp_path)
    assert augmented['model']['mIoU' if segmentation else 'coco/bbox_mAP'] >= 0
    assert augmented['most frequent class'] == written['most frequent class']


def test_window_size_equals_a_config_with_that_window(tasks, tmp_path, capfd):
    """--window-size gives a row per window, with what a model built for that window gets."""
    arguments = tasks.configs['segmentation'], tasks.checkpoints['segmentation']
    arguments += '--work-dir', tmp_path
    call(test.main, *arguments, '--window-size', 8, '4x6', '3,5,2,2', 8)
    rows = results(tmp_path)
    assert list(rows) == ['window 8', 'window 4x6', 'window 3,5,2,2']
    table = capfd.readouterr().out.split(f'\n{arguments[1]}\n')[1]
    assert table.split('\n')[0].split()[:4] == ['mIoU', 'mAcc', 'aAcc', 's/image']
    for name, row in rows.items():
        assert name in table
        assert row['s/image'] > 0
        assert 'peak MB' in row
    assert len({row['mIoU'] for row in rows.values()}) == 3, 'each window has its own result'
    for text, setting in (('4x6', '(4,6)'), ('3,5,2,2', '[3,5,2,2]')):
        options = (
            f'model.backbone.window_size={setting}',
            'model.backbone.pretrained_window_sizes=8',
        )
        call(test.main, *arguments, '--cfg-options', *options)
        built = results(tmp_path)['model']
        assert 's/image' not in built
        for key, value in built.items():
            assert rows[f'window {text}'][key] == pytest.approx(value, abs=1e-9), (text, key)


@pytest.mark.slow
def test_window_size_of_a_detector(tasks, tmp_path):
    arguments = tasks.configs['detection'], tasks.checkpoints['detection'], '--work-dir', tmp_path
    call(test.main, *arguments, '--window-size', 8, '3,5,2,2')
    assert [name for name, row in results(tmp_path).items() if row['s/image'] > 0] == [
        'window 8',
        'window 3,5,2,2',
    ]


MISTAKES = {
    'no checkpoint': (['{segmentation}'], 'arguments are required: checkpoint'),
    'no annotations': (
        [
            '{detection}',
            '{weights}',
            '--cfg-options',
            'test_dataloader.dataset.ann_file=annotations/x.json',
        ],
        "shapes/annotations/x.json' not found (test_dataloader of the config): "
        'run `make data/shapes`',
    ),
    'several windows drawn into one folder': (
        ['{segmentation}', '{weights}', '--window-size', '8', '16', '--show-dir', 'x'],
        '--show-dir: got 2 tests (--window-size or --runtime), whose predictions would overwrite',
    ),
    'no window': (
        ['{segmentation}', '{weights}', '--window-size', '8x'],
        "--window-size: got '8x', allowed: a side as 16, HEIGHTxWIDTH",
    ),
    'no such checkpoint': (
        ['{segmentation}', 'nothing.pth'],
        "checkpoint 'nothing.pth' does not exist",
    ),
    'folder without checkpoints': (['{segmentation}', '.'], 'no iter_*.pth or epoch_*.pth in this'),
    'text file': (['{segmentation}', '{text}'], 'refused by the safe loader'),
    'truncated file': (['{segmentation}', '{truncated}'], ''),
    'weights of another model': (
        ['{segmentation}', '{weights}'],
        "does not fit the config's model: it lacks ",
    ),
    'another number of classes': (
        ['{segmentation}', '{other_classes}'],
        'it lacks 4 parameters (auxiliary_head.conv_seg.bias (5,), ',
    ),
    'predictions of a detector as JSON': (
        ['{detection}', '{weights}', '--out', 'x.json'],
        "--out: got 'x.json', allowed with mmdet: a .pkl file",
    ),
}  # fmt: skip
if importlib.util.find_spec('mmpretrain') is None:
    MISTAKES['no mmpretrain'] = (
        [ROOT / 'configs/classification/swinv2_tiny_in1k.py', '{weights}'],
        'needs mmpretrain, which cannot be imported here (',
    )


def test_predictions_that_cannot_be_written_are_refused_at_once(
    tasks, tmp_path, monkeypatch, capsys
):
    """mmdet writes them after the test, which may have taken hours."""
    monkeypatch.setattr(
        'os.access', lambda path, mode: path != tmp_path
    )  # Root may write anywhere.
    arguments = tasks.configs['detection'], tasks.checkpoints['detection']
    out = tmp_path / 'new' / 'x.pkl'
    message = error_line(capsys, test.main, *arguments, '--work-dir', tmp_path, '--out', out)
    assert f"--out: got '{out}', but nothing can be written to '{tmp_path}'" in message


@pytest.mark.parametrize(('args', 'message'), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_in_one_line(tasks, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    truncated = tmp_path / 'truncated' / 'x.pth'
    truncated.parent.mkdir()
    truncated.write_bytes(tasks.checkpoints['segmentation'].read_bytes()[:-1000])
    names = dict(**vars(tasks), **tasks.configs, truncated=truncated)
    args = [str(arg).format(**names) for arg in args]
    assert message in error_line(capsys, test.main, *args, '--work-dir', tmp_path)
