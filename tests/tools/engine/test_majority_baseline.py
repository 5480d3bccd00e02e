"""The majority baseline equals what a few lines compute from the label maps."""

import pytest

cv2 = pytest.importorskip('cv2')
pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmengine.config import Config

from tools.engine.majority_baseline import majority_baseline


def test_segmentation(tasks):
    """The most frequent class is the background; its share of the pixels is its IoU."""
    labels = [cv2.imread(str(p), -1) for p in sorted((tasks.data / 'semseg/val').iterdir())]
    share = sum((label == 0).sum() for label in labels) / sum(label.size for label in labels)
    present = len(set().union(*(set(label.ravel().tolist()) for label in labels)))
    baseline = majority_baseline(Config.fromfile(tasks.configs['segmentation']))
    assert baseline['aAcc'] == pytest.approx(100 * share, abs=0.01)
    assert baseline['mIoU'] == pytest.approx(100 * share / present, abs=0.01)


def test_detection(tasks):
    """No shape fills its image, so hardly any of these boxes is right."""
    baseline = majority_baseline(Config.fromfile(tasks.configs['detection']))
    assert 0 <= baseline['coco/segm_mAP'] < 0.1
    assert 0 <= baseline['coco/bbox_mAP'] < 0.1
