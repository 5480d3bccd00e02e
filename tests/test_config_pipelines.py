"""The data pipelines of the configs, on a made-up image."""

import numpy as np
import pytest

cv2 = pytest.importorskip('cv2')
for toolbox in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(toolbox)

from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

from tools.zoo.facts import load, names

# Those of small and base are equal (tests/test_configs.py).
TINY = [n for n in names() if '_tiny_' in n and n.startswith(('detection/', 'segmentation/'))]
HEIGHT, WIDTH = 90, 120


@pytest.fixture
def files(tmp_path):
    """Paths of an image and of a label map with the classes 0, 1 and 2."""
    generator = np.random.default_rng(0)
    image, label_map = tmp_path / 'image.png', tmp_path / 'labels.png'
    cv2.imwrite(str(image), generator.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    cv2.imwrite(str(label_map), generator.integers(0, 3, (HEIGHT, WIDTH), np.uint8))
    return image, label_map


def sample(cfg, files):
    """What the dataset of a config passes to its pipeline."""
    image, label_map = map(str, files)
    if cfg.default_scope == 'mmseg':
        reduce = cfg.train_dataloader.dataset.type == 'ADE20KDataset'
        return dict(
            img_path=image,
            seg_map_path=label_map,
            label_map=None,
            reduce_zero_label=reduce,
            seg_fields=[],
        )
    x, y, side = 20, 10, 60
    box = [x, y, x + side, y + side]
    outline = [x, y, x + side, y, x + side, y + side, x, y + side]
    instance = dict(bbox=box, bbox_label=0, mask=[outline], ignore_flag=0)
    return dict(img_path=image, img_id=0, height=HEIGHT, width=WIDTH, instances=[instance])


@pytest.mark.parametrize('name', TINY)
def test_training_and_test_pipelines(name, files):
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    trained, tested = (
        Compose(cfg[loader].dataset.pipeline)(sample(cfg, files))
        for loader in ('train_dataloader', 'test_dataloader')
    )
    for item in (trained, tested):
        assert item['inputs'].shape[0] == 3
    if cfg.default_scope == 'mmseg':
        crop = tuple(cfg.model.data_preprocessor.size)
        height, width = trained['inputs'].shape[1:]
        assert height <= crop[0]
        assert width <= crop[1]
        assert trained['data_samples'].gt_sem_seg.data.shape == (1, height, width)
        labels = set(tested['data_samples'].gt_sem_seg.data.unique().tolist())
        # ADE20K's 0 is no class, and the others are moved down.
        assert labels == ({0, 1, 255} if name.endswith('ade20k') else {0, 1, 2})
        assert tested['data_samples'].gt_sem_seg.data.shape == (1, HEIGHT, WIDTH)
    else:
        masks = 'segm' in cfg.test_evaluator.metric
        for item in (trained, tested):
            assert ('masks' in item['data_samples'].gt_instances) == masks
        assert len(tested['data_samples'].gt_instances) == 1
