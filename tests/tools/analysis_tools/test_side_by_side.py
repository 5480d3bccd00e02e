"""tools/analysis_tools/side_by_side.py: the image it writes."""

import pytest

from tests.helpers.scripts import call, error_line

cv2 = pytest.importorskip('cv2')
for toolbox in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(toolbox)

from tools.analysis_tools import side_by_side


@pytest.mark.parametrize('task', ['segmentation', 'detection'])
def test_rows_of_image_truth_and_prediction(tasks, tmp_path, task):
    out = tmp_path / 'new' / 'image.png'
    arguments = tasks.configs[task], tasks.checkpoints[task], '--out', out
    options = '--num', 2, '--side', 100, '--work-dir', tmp_path
    call(side_by_side.main, *arguments, *options)
    image = cv2.imread(str(out))
    # A row is 22 pixels of caption, 100 of image and 4 of margin.
    assert image.shape == (2 * (22 + 100 + 4), 3 * 100, 3)
    panels = [image[22:122, left : left + 100] for left in (0, 100, 200)]
    assert (panels[0] != panels[1]).any(), 'the ground truth is drawn'


def test_mistakes_end_in_one_line(tasks, capsys):
    arguments = tasks.configs['segmentation'], tasks.weights, '--out'
    message = error_line(capsys, side_by_side.main, *arguments, 'x.png', '--num', 0)
    assert "--num: got '0', allowed: an integer of at least 1" in message
    message = error_line(capsys, side_by_side.main, *arguments, 'x.jpg')
    assert "--out: got 'x.jpg', allowed: a .png file" in message
