"""A model of a config with random weights, and a made-up batch for it."""

import copy

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData


def build_model(cfg: Config) -> BaseModel:
    """The model of a config on a CPU, with its initialization, but without downloaded weights.

    Synchronized batch norms, which require several GPUs, become usual ones.
    """
    init_default_scope(cfg.default_scope)
    settings = copy.deepcopy(cfg.model)
    settings.backbone.init_cfg = None
    model = revert_sync_batchnorm(MODELS.build(settings))
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')  # mmengine lists every parameter.
    model.init_weights()
    logger.setLevel(level)
    return model


def example_batch(cfg: Config, size: tuple[int, int], images: int, objects: int = 3) -> dict:
    """Random images with annotations, as a data loader of the config gives them.

    Args:
        cfg: The config, whose scope must be the default one (:func:`build_model`).
        size: Height and width of the images in pixels.
        objects: The number of boxes and masks per image, for detectors.
    """
    if cfg.default_scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        batch = demo_mm_inputs(images, (3, *size), num_items=[objects] * images, with_mask=True)
        for sample in batch['data_samples']:
            sample.gt_instances.labels %= num_classes(cfg)
        return batch
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        for _ in range(images)
    ]
    if cfg.default_scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        classes = cfg.model.head.num_classes
        labels = torch.randint(classes, (images,), generator=generator)
        return dict(
            inputs=torch.stack(inputs), data_samples=[DataSample().set_gt_label(i) for i in labels]
        )
    from mmseg.structures import SegDataSample

    samples = []
    for index in range(images):
        classes = cfg.model.decode_head.num_classes
        label_map = torch.randint(classes, (1, *size), generator=generator)
        sample = SegDataSample(gt_sem_seg=PixelData(data=label_map))
        # As the pipelines set it.
        sample.set_metainfo(dict(img_shape=size, ori_shape=size, img_path=f'{index}.png'))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def num_classes(cfg: Config) -> int:
    """The number of classes of the training data of a detector's config."""
    from mmdet.registry import DATASETS

    dataset = cfg.train_dataloader.dataset
    metainfo = dataset.get('metainfo') or DATASETS.get(dataset.type).METAINFO
    return len(metainfo['classes'])
