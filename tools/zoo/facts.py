"""What the zoo says of a config, read from the config."""

import re
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from swinv2_backbone.arguments import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
FOLDERS = ('detection', 'segmentation', 'classification', 'pose')


class Method(NamedTuple):
    """A head or detector.

    Attributes:
        collection: Its name.
        title: The title of its paper, and url the paper's address.
    """

    collection: str
    title: str
    url: str


# By the folder of the configs and the beginning of their names.
METHODS = {
    'detection/mask_rcnn': Method('Mask R-CNN', 'Mask R-CNN', 'https://arxiv.org/abs/1703.06870'),
    'detection/cascade_mask_rcnn': Method(
        'Cascade Mask R-CNN',
        'Cascade R-CNN: High Quality Object Detection and Instance Segmentation',
        'https://arxiv.org/abs/1906.09756',
    ),
    'detection/retinanet': Method(
        'RetinaNet', 'Focal Loss for Dense Object Detection', 'https://arxiv.org/abs/1708.02002'
    ),
    'detection/atss': Method(
        'ATSS',
        'Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training '
        'Sample Selection',
        'https://arxiv.org/abs/1912.02424',
    ),
    'detection/dino': Method(
        'DINO',
        'DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object Detection',
        'https://arxiv.org/abs/2203.03605',
    ),
    'detection/mask2former': Method(
        'Mask2Former',
        'Masked-attention Mask Transformer for Universal Image Segmentation',
        'https://arxiv.org/abs/2112.01527',
    ),
    'segmentation/upernet': Method(
        'UPerNet',
        'Unified Perceptual Parsing for Scene Understanding',
        'https://arxiv.org/abs/1807.10221',
    ),
    'segmentation/mask2former': Method(
        'Mask2Former (semantic)',
        'Masked-attention Mask Transformer for Universal Image Segmentation',
        'https://arxiv.org/abs/2112.01527',
    ),
    'segmentation/segformer': Method(
        'SegFormer',
        'SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers',
        'https://arxiv.org/abs/2105.15203',
    ),
    'classification/': Method(
        'SwinV2',
        'Swin Transformer V2: Scaling Up Capacity and Resolution',
        'https://arxiv.org/abs/2111.09883',
    ),
    'pose/heatmap': Method(
        'Heatmap',
        'Simple Baselines for Human Pose Estimation and Tracking',
        'https://arxiv.org/abs/1804.06208',
    ),
}
# The data by the end of a config's name.
DATA = {
    'coco': 'COCO',
    'ade20k': 'ADE20K',
    'cityscapes': 'Cityscapes',
    'in1k': 'ImageNet-1K',
    'nuclei': 'BBBC038 (nuclei)',
    'nuclei_overfit': 'BBBC038 (nuclei)',
    'shapes': 'shapes (made)',
}
PAPER = 'SwinV2 paper (arXiv 2111.09883), table 1'
MODEL_HUB = 'SwinV2 paper (arXiv 2111.09883) and microsoft/Swin-Transformer, MODELHUB.md'
# Published scores of the same model in the same setting, with their source; nothing else is cited.
CITED = {
    'detection/cascade_mask_rcnn_swinv2_tiny_w16_3x_coco': ({'box AP': 51.1}, PAPER),
    'segmentation/upernet_swinv2_tiny_w16_ade20k': ({'mIoU': 47.0}, PAPER),
    'classification/swinv2_tiny_in1k': (
        {'Top 1 Accuracy': 81.8, 'Top 5 Accuracy': 95.9},
        MODEL_HUB,
    ),
    'classification/swinv2_tiny_w16_in1k': ({'Top 1 Accuracy': 83.8}, PAPER),
}


def names() -> list[str]:
    """All configs, as 'FOLDER/NAME' without the suffix, in the order of the documents."""
    found = [
        f'{folder}/{path.stem}' for folder in FOLDERS for path in (CONFIGS / folder).glob('*.py')
    ]
    return sorted(found, key=_place)


def load(name: str) -> Config:
    """The config of a name."""
    return Config.fromfile(CONFIGS / f'{name}.py')


def method_key(name: str) -> str:
    """The key of METHODS of a config."""
    return re.match(r'(classification/)|(\w+/\w+?)(?=_swinv2_)', name)[0]


def data_key(name: str) -> str:
    """The key of DATA of a config."""
    return next(key for key in sorted(DATA, key=len, reverse=True) if name.endswith(f'_{key}'))


def _place(name: str) -> tuple:
    """By method, data, recipe and architecture."""
    recipe, arch = re.sub('_(tiny|small|base)(?=_)', '', name), name.split('_swinv2_')[-1]
    size = next(i for i, each in enumerate(ARCHITECTURES) if f'{each}_' in arch)
    return [*METHODS].index(method_key(name)), [*DATA].index(data_key(name)), recipe, size


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the image for which the complexity of a config's model is stated.

    That of the test, where it is fixed. Images of COCO are 800 high and 1333 wide at most. For a
    segmentor it is the size of its crops, as in papers; for data of any size, 256 x 256.
    """
    if crop := cfg.model.data_preprocessor.get('size'):
        return tuple(crop)
    steps = {step.type: step for step in cfg.test_dataloader.dataset.pipeline}
    if 'CenterCrop' in steps:
        return (steps['CenterCrop'].crop_size,) * 2
    scale = steps.get('Resize', {}).get('scale')
    return (min(scale), max(scale)) if scale else (256, 256)
