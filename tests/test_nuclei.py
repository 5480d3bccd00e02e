"""Real images pass through the pipelines of the nuclei configs; skipped without the data."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[1]
PLACES = [ROOT / 'data/nuclei', ROOT.parent / 'shared/data/nuclei']
DATA = next((place for place in PLACES if place.is_dir()), None)

pytestmark = pytest.mark.skipif(DATA is None, reason='needs data/nuclei')


def dataset(config, loader, toolbox):
    pytest.importorskip(toolbox)
    from mmengine.registry import DATASETS, DefaultScope

    cfg = Config.fromfile(ROOT / 'configs' / config)
    settings = cfg[loader].dataset
    settings.data_root = str(DATA)
    with DefaultScope.overwrite_default_scope(toolbox):
        built = DATASETS.build(settings)
        return built, [built[i] for i in range(3)]


@pytest.mark.parametrize(('loader', 'count'), [('train_dataloader', 96), ('val_dataloader', 32)])
def test_both_tasks_read_the_same_folder(loader, count):
    semantic, maps = dataset('segmentation/upernet_swinv2_tiny_nuclei.py', loader, 'mmseg')
    instances, _ = dataset('detection/mask_rcnn_swinv2_tiny_nuclei.py', loader, 'mmdet')
    assert len(semantic) == len(instances) == count
    for sample in maps:
        labels = sample['data_samples'].gt_sem_seg.data
        assert set(labels.unique().tolist()) <= {0, 1}
        assert sample['inputs'].shape[0] == 3
        if loader == 'train_dataloader':
            assert sample['inputs'].shape[1:] == (128, 128)


def test_the_union_of_the_masks_is_the_label_map():
    _, maps = dataset('segmentation/upernet_swinv2_tiny_nuclei.py', 'val_dataloader', 'mmseg')
    _, instances = dataset('detection/mask_rcnn_swinv2_tiny_nuclei.py', 'val_dataloader', 'mmdet')
    label_maps = {
        Path(s['data_samples'].img_path).name: s['data_samples'].gt_sem_seg.data.squeeze()
        for s in maps
    }
    compared = 0
    for sample in (s['data_samples'] for s in instances):
        label_map = label_maps.get(Path(sample.img_path).name)
        if label_map is not None:
            union = sample.gt_instances.masks.to_ndarray().any(0)
            assert np.array_equal(union, label_map.numpy() == 1)
            compared += 1
    assert compared
