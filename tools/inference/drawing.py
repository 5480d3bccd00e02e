"""Drawn predictions, by the visualizers of the toolboxes."""

from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData, PixelData
from mmengine.visualization import Visualizer

from tools.inference.detection import Detections
from tools.inference.sources import Source
from tools.utils.errors import UserError

# Larger images are scaled down when they are drawn.
SIDE = 2048


def make_visualizer(cfg: Config, metainfo: dict) -> Visualizer:
    """A visualizer of a config's class, which writes nothing by itself."""
    options = dict(cfg.visualizer, vis_backends=None, save_dir=None)
    # Not by `build`: it returns the one that a config before has made, if there is one.
    with VISUALIZERS.switch_scope_and_registry(cfg.default_scope) as registry:
        visualizer = registry.get(options.pop('type'))(**options)
    visualizer.dataset_meta = metainfo
    return visualizer


def _scaled(image: np.ndarray, method: int) -> tuple[np.ndarray, float]:
    """An image scaled down to the largest side that is drawn, and the factor."""
    factor = min(1.0, SIDE / max(image.shape[:2]))
    if factor == 1.0:
        return image, factor
    size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=method), factor


def draw_labels(visualizer: Visualizer, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A BGR image with the classes ``(H, W)`` of its pixels as colors, as a BGR image."""
    from mmseg.structures import SegDataSample

    small = torch.from_numpy(_scaled(labels, cv2.INTER_NEAREST)[0].astype(np.int64))
    sample = SegDataSample(pred_sem_seg=PixelData(data=small[None]))
    return _draw(visualizer, _scaled(image, cv2.INTER_AREA)[0], sample, with_labels=False)


def draw_detections(visualizer: Visualizer, image: np.ndarray, found: Detections) -> np.ndarray:
    """A BGR image with its detections, as a BGR image. The masks are painted into the original."""
    from mmdet.structures import DetDataSample
    from mmdet.visualization.palette import get_palette

    palette = get_palette(
        visualizer.dataset_meta['palette'], len(visualizer.dataset_meta['classes'])
    )
    for mask, label in zip(found.masks or [], found.labels.tolist(), strict=False):
        height, width = mask.pixels.shape
        area = image[mask.top : mask.top + height, mask.left : mask.left + width]
        area[mask.pixels] = area[mask.pixels] * 0.5 + np.array(palette[label][::-1]) * 0.5
    small, factor = _scaled(image, cv2.INTER_AREA)
    instances = InstanceData(bboxes=found.boxes * factor, scores=found.scores, labels=found.labels)
    return _draw(visualizer, small, DetDataSample(pred_instances=instances), pred_score_thr=-1)


def _draw(visualizer: Visualizer, image: np.ndarray, sample: object, **options) -> np.ndarray:
    visualizer.add_datasample('', image[..., ::-1], sample, draw_gt=False, show=False, **options)
    return np.ascontiguousarray(visualizer.get_image()[..., ::-1])


def png_path(folder: Path, name: str) -> Path:
    """The PNG file for an image of a name, which keeps a suffix of its own if it is another."""
    return folder / (name if name.lower().endswith('.png') else f'{name}.png')


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image, and the folders that it is in.

    Raises:
        UserError: If OpenCV cannot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise UserError(f"'{path}' cannot be written")


class DrawnImages:
    """Writes drawn images to `drawn/`: each to a PNG file, or the frames of a video to an MP4.

    Args:
        stem: Of the name of the video.
    """

    def __init__(self, folder: Path, source: Source, stem: str) -> None:
        self.folder, self.rate = folder, source.frames_per_second
        self.path, self.video = folder / f'{stem}.mp4', None

    def add(self, name: str, image: np.ndarray) -> None:
        """Write one more image."""
        if self.rate is None:
            write_image(png_path(self.folder, name), image)
            return
        if self.video is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter.fourcc(*'mp4v')
            size = image.shape[1::-1]
            self.video = cv2.VideoWriter(str(self.path), code, self.rate or 25, size)
            if not self.video.isOpened():
                raise UserError(f"'{self.path}' cannot be written")
        self.video.write(image)

    def close(self) -> None:
        """Complete the video."""
        if self.video is not None:
            self.video.release()
