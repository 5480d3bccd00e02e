"""Predictions of one image, whole or in tiles, and the files that they are written to."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from mmengine.fileio import dump
from torch import nn

from swinv2_backbone.checkpoints.files import atomic_file
from tools.inference import detection
from tools.inference.drawing import (
    draw_detections,
    draw_labels,
    make_visualizer,
    png_path,
    write_image,
)
from tools.inference.tiles import Tile


def segment(
    model: nn.Module, image: np.ndarray, tiles: Iterable[Tile]
) -> tuple[np.ndarray, np.ndarray]:
    """The class of each pixel of a BGR image, ``(H, W)``, and the number of pixels of each class.

    Args:
        model: Of mmseg, by :func:`tools.inference.model.load_model`.
    """
    from mmseg.apis import inference_model

    # Only what a tile answers for is kept: neither logits nor int64 labels of the whole image.
    counts = np.zeros(len(model.dataset_meta['classes']), np.int64)
    labels = np.empty(image.shape[:2], np.uint8 if len(counts) <= 256 else np.uint16)
    for tile in tiles:
        sample = inference_model(model, image[tile.outer])
        found = sample.pred_sem_seg.data[0][tile.own_inside].cpu().numpy()
        labels[tile.own] = found
        counts += np.bincount(found.ravel().astype(np.int64), minlength=len(counts))
    return labels, counts


def detect(
    model: nn.Module, image: np.ndarray, tiles: Iterable[Tile], score_thr: float
) -> detection.Detections:
    """The detections in a BGR image, highest score first.

    Args:
        model: Of mmdet, by :func:`tools.inference.model.load_model`.
        score_thr: The smallest score.
    """
    from mmdet.apis import inference_detector

    (height, width), parts, cut = image.shape[:2], [], []
    for tile in tiles:
        part = np.ascontiguousarray(image[tile.outer])
        sample = inference_detector(model, part, model.test_pipeline)
        parts.append(detection.of_tile(sample.pred_instances, score_thr, tile))
        cut.append(detection.touches_inner_border(parts[-1].boxes, tile, height, width))
    return detection.merge(parts, cut)


class Segmenting:
    """Predicts label maps with mmseg: PNG files, and one JSON file with the pixels of each class.

    Args:
        out_dir: Where label maps (`labels/`) and `segmentation.json` go.
    """

    def __init__(self, model: nn.Module, out_dir: Path) -> None:
        self.model, self.out_dir = model, out_dir
        self.classes = model.dataset_meta['classes']
        self.visualizer = make_visualizer(model.cfg, model.dataset_meta)
        self.images: list[dict] = []

    def __call__(self, name: str, image: np.ndarray, tiles: Iterable[Tile]) -> np.ndarray:
        """Predict an image, write its label map, and return it drawn."""
        labels, counts = segment(self.model, image, tiles)
        path = png_path(self.out_dir / 'labels', name)
        write_image(path, labels)
        self.images.append(
            dict(
                file_name=name,
                height=image.shape[0],
                width=image.shape[1],
                label_map=path.relative_to(self.out_dir).as_posix(),
                pixels=dict(zip(self.classes, counts.tolist(), strict=True)),
            )
        )
        return draw_labels(self.visualizer, image, labels)

    def write(self) -> list[Path]:
        """Write the JSON file."""
        return [write_json(self.out_dir / 'segmentation.json', dict(images=self.images))]


class Detecting:
    """Predicts boxes and masks with mmdet: `detections.json` in COCO's results format.

    Beside it, `images.json` has the images and categories that its numbers are of, in COCO's
    format, too.

    Args:
        score_thr: Smallest score of the detections that are written and drawn.
    """

    def __init__(self, model: nn.Module, out_dir: Path, score_thr: float) -> None:
        self.model, self.out_dir, self.score_thr = model, out_dir, score_thr
        self.visualizer = make_visualizer(model.cfg, model.dataset_meta)
        self.images: list[dict] = []
        self.results: list[dict] = []

    def __call__(self, name: str, image: np.ndarray, tiles: Iterable[Tile]) -> np.ndarray:
        """Predict an image, and return it drawn."""
        found = detect(self.model, image, tiles, self.score_thr)
        (height, width), image_id = image.shape[:2], len(self.images)
        self.images.append(dict(id=image_id, file_name=name, height=height, width=width))
        self.results += detection.coco_results(found, image_id, height, width)
        return draw_detections(self.visualizer, image, found)

    def write(self) -> list[Path]:
        """Write the JSON files."""
        names = enumerate(self.model.dataset_meta['classes'], 1)
        categories = [dict(id=index, name=name) for index, name in names]
        index = dict(images=self.images, categories=categories)
        return [
            write_json(self.out_dir / 'detections.json', self.results),
            write_json(self.out_dir / 'images.json', index),
        ]


def write_json(path: Path, data: object) -> Path:
    """Write a JSON file atomically."""
    with atomic_file(path) as partial:
        Path(partial).write_text(dump(data, file_format='json'))
    return path
