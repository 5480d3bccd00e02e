"""The majority baseline: the scores of predicting the most frequent class everywhere."""

from collections import Counter
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS, METRICS, DefaultScope

from tools.engine.runner import test_evaluators


def majority_baseline(cfg: Config) -> dict[str, float]:
    """Scores of the majority baseline on the test data of a config of mmseg or mmdet.

    They are computed by the config's own metrics, and named as these name them.
    """
    predictions = _whole_boxes if cfg.default_scope == 'mmdet' else _label_maps
    scores = {}
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        metrics = [METRICS.build(config) for config in test_evaluators(cfg)]
        for metric in metrics:
            metric.dataset_meta = dataset.metainfo
        for sample in predictions(dataset):
            for metric in metrics:
                metric.process({}, [sample])
        print_log('Scores of the most frequent class:', logger='current')
        for metric in metrics:  # Not evaluate(), which collects the results of all processes.
            prefix = f'{metric.prefix}/' if metric.prefix else ''
            found = metric.compute_metrics(metric.results)
            scores |= {prefix + name: float(value) for name, value in found.items()}
    return scores


def _label_maps(dataset: BaseDataset) -> Iterator[dict]:
    """Samples in which every pixel is predicted as the class of the most pixels."""
    counts = torch.zeros(256, dtype=torch.long)
    for sample in dataset:
        labels = sample['data_samples'].gt_sem_seg.data
        counts += torch.bincount(labels.flatten(), minlength=256)
    most_frequent = counts[: len(dataset.metainfo['classes'])].argmax()  # 255 is ignored.
    for sample in dataset:
        labels = sample['data_samples'].gt_sem_seg.data
        predicted = torch.full_like(labels, most_frequent)
        yield dict(gt_sem_seg=dict(data=labels), pred_sem_seg=dict(data=predicted))


def _whole_boxes(dataset: BaseDataset) -> Iterator[dict]:
    """Samples in which one object per image, all of it, has the class of the most objects."""
    images = [dataset.get_data_info(index) for index in range(len(dataset))]
    counts = Counter(each['bbox_label'] for image in images for each in image['instances'])
    most_frequent = counts.most_common(1)[0][0] if counts else 0
    for image in images:
        height, width = image['height'], image['width']
        predicted = dict(
            bboxes=torch.tensor([[0.0, 0.0, width, height]]),
            scores=torch.ones(1),
            labels=torch.tensor([most_frequent]),
            masks=torch.ones(1, height, width, dtype=torch.bool),
        )
        yield dict(img_id=image['img_id'], ori_shape=(height, width), pred_instances=predicted)
