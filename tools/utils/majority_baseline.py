"""The majority baseline: the score of predicting the most frequent class everywhere."""

import contextlib
import io
from collections import Counter

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope


def majority_baseline(cfg: Config) -> dict[str, float]:
    """Scores of the majority baseline on the test data of a config.

    Args:
        cfg: A config of mmseg or mmdet.

    Returns:
        Metrics under the names that the toolbox's own metric gives them: mIoU, mAcc, aAcc in
        percent, or ``coco/{bbox,segm}_{mAP,mAP_50,mAP_75}`` as fractions.
    """
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        return _detection(dataset) if cfg.default_scope == 'mmdet' else _segmentation(dataset)


def _segmentation(dataset: BaseDataset) -> dict[str, float]:
    """Every pixel predicted as the class of the most pixels."""
    from mmseg.evaluation import IoUMetric

    classes, ignored = len(dataset.metainfo['classes']), 255
    labels = [sample['data_samples'].gt_sem_seg.data.squeeze().long() for sample in dataset]
    counts = sum(torch.bincount(one[one != ignored], minlength=classes) for one in labels)
    most_frequent = int(counts.argmax())
    areas = zip(
        *(
            IoUMetric.intersect_and_union(
                torch.full_like(one, most_frequent), one, classes, ignored
            )
            for one in labels
        ),
        strict=True,
    )
    metrics = IoUMetric.total_area_to_metrics(*(sum(area) for area in areas))
    return {
        name: round(100 * float(np.nanmean(metrics[key])), 2)
        for name, key in (('mIoU', 'IoU'), ('mAcc', 'Acc'), ('aAcc', 'aAcc'))
    }


def _detection(dataset: BaseDataset) -> dict[str, float]:
    """One object per image, all of it, predicted as the class of the most objects."""
    from pycocotools import mask as rle
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    shown = {dataset.get_data_info(i)['img_id'] for i in range(len(dataset))}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        coco = COCO(dataset.ann_file)
    counts = Counter(
        a['category_id']
        for a in coco.anns.values()
        if a['image_id'] in shown and a['category_id'] in dataset.cat_ids
    )
    most_frequent = counts.most_common(1)[0][0] if counts else dataset.cat_ids[0]
    results, metrics = [], {}
    for image in (coco.imgs[i] for i in sorted(shown)):
        size = image['height'], image['width']
        results.append(
            dict(
                image_id=image['id'],
                category_id=most_frequent,
                score=1.0,
                bbox=[0, 0, image['width'], image['height']],
                segmentation=rle.encode(np.ones(size, np.uint8, order='F')),
            )
        )
    for kind in ('bbox', 'segm'):
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(coco, coco.loadRes(results), kind)
            evaluation.params.imgIds, evaluation.params.catIds = sorted(shown), dataset.cat_ids
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        for name, value in zip(('mAP', 'mAP_50', 'mAP_75'), evaluation.stats[:3], strict=True):
            metrics[f'coco/{kind}_{name}'] = round(float(value), 3)
    return metrics
