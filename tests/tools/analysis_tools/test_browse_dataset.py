"""tools/analysis_tools/browse_dataset.py: the images it writes."""

import pytest

from tests.helpers.scripts import call, error_line

cv2 = pytest.importorskip('cv2')
for toolbox in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(toolbox)

from tools.analysis_tools import browse_dataset


def images(folder):
    return [cv2.imread(str(path)) for path in sorted(folder.glob('*.png'))]


@pytest.mark.parametrize('task', ['segmentation', 'detection'])
def test_images_are_those_of_the_pipeline_with_the_truth_drawn(tasks, tmp_path, task):
    arguments = tasks.configs[task], '--out-dir', tmp_path / 'new', '--num', 3, '--data', 'val'
    call(browse_dataset.main, *arguments)
    drawn = images(tmp_path / 'new')
    plain = [cv2.imread(str(path)) for path in sorted((tasks.data / 'images/val').glob('*.png'))]
    assert [each.shape for each in drawn] == [each.shape for each in plain]
    for with_truth, without in zip(drawn, plain, strict=True):
        assert (with_truth != without).any(), 'the ground truth is drawn'
        equal = (with_truth == without).all(-1).mean()
        assert task == 'segmentation' or equal > 0.2, 'the image is the file, its colors in order'


def test_augmentation_is_repeated_with_a_seed(tasks, tmp_path):
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        arguments = tasks.configs['segmentation'], '--out-dir', tmp_path / name, '--seed', seed
        call(browse_dataset.main, *arguments, '--num', 99)
    a, b, c = (images(tmp_path / name) for name in 'abc')
    assert len(a) == 8, 'all images there are'
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
    assert any((x != y).any() for x, y in zip(a, c, strict=True)), 'flipped otherwise'


def test_mistakes_end_in_one_line(tasks, tmp_path, capsys):
    arguments = tasks.configs['detection'], '--out-dir', tmp_path
    message = error_line(capsys, browse_dataset.main, *arguments, '--num', 0)
    assert "--num: got '0', allowed: an integer of at least 1" in message
    missing = '--cfg-options', 'train_dataloader.dataset.data_root=nowhere'
    message = error_line(capsys, browse_dataset.main, *arguments, *missing)
    assert "data 'nowhere' not found" in message
