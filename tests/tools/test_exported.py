"""tools/test.py --runtime: an exported file has the scores of the model it was made from."""

import json

import pytest

from tests.helpers.scripts import ROOT, call, error_line

for needed in ('mmcv', 'mmdet', 'mmseg', 'onnxruntime', 'onnxscript'):
    pytest.importorskip(needed)

from tools import test
from tools.deployment import export

# mmdet's AP and mmseg's IoU as the toolboxes scale them, in points.
POINTS = {'segmentation': ('mIoU', 1), 'detection': ('coco/segm_mAP', 100)}


@pytest.mark.parametrize(
    ('task', 'part'),
    [
        ('segmentation', 'model'),
        pytest.param('detection', 'model', marks=pytest.mark.slow),
        pytest.param('detection', 'backbone', marks=pytest.mark.slow),
    ],
)
def test_a_file_has_the_scores_of_its_model(tasks, tmp_path, capfd, task, part):
    """Within 0.1 points: a segmentor, a detector, and the backbone of a detector."""
    files, file = (tasks.configs[task], tasks.checkpoints[task]), tmp_path / 'model.onnx'
    options = [] if part == 'model' else ['--part', 'backbone', '--dynamic']
    call(export.main, *files, '--out', file, '--size', 64, *options)
    call(test.main, *files, '--work-dir', tmp_path, '--runtime', 'onnxruntime', file)
    rows = json.loads((tmp_path / 'test_results.json').read_text())['results']
    assert list(rows) == ['torch', 'onnxruntime']
    assert all(row['s/image'] > 0 for row in rows.values())
    metric, scale = POINTS[task]
    ours, theirs = (row[metric] * scale for row in rows.values())
    assert ours == pytest.approx(theirs, abs=0.1)
    assert 's/image' in capfd.readouterr().out


def test_mistakes_end_in_one_line(tasks, tmp_path, capsys):
    files = tasks.configs['segmentation'], tasks.checkpoints['segmentation']
    file = tmp_path / 'small.onnx'
    call(export.main, *files, '--out', file, '--size', 32, '--part', 'backbone')
    mistakes = {
        ('tensorrt', file): "--runtime: got 'tensorrt', allowed: onnxruntime or openvino",
        ('onnxruntime', tmp_path / 'no.onnx'): 'does not exist; tools/deployment/export.py',
        ('onnxruntime', ROOT / 'README.md'): 'allowed: a .onnx file',
        ('onnxruntime', file): 'got an image of 64 x 64 (padding included), the file takes 32 x 32',
    }
    capsys.readouterr()  # What the export wrote.
    for options, message in mistakes.items():
        arguments = *files, '--work-dir', tmp_path, '--runtime', *options
        assert message in error_line(capsys, test.main, *arguments)
