"""What a model makes of an image, and what it looks like inside, as images to show."""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from mmengine.registry import DefaultScope
from PIL import Image
from torch import nn

from swinv2_backbone import SwinTransformerV2
from tools.engine.exported import use_exported
from tools.inference import detection
from tools.inference.drawing import draw_detections, draw_labels, make_visualizer
from tools.inference.listing import TORCH, Listed, read_config
from tools.inference.model import load_model
from tools.inference.predicting import detect, segment
from tools.inference.tiles import tiles_of
from tools.inference.uploads import Refused
from tools.utils.cli import Window
from tools.utils.errors import UserError, first_line
from tools.utils.images import to_tensor
from tools.utils.maps import center_bias, colors, feature_maps
from tools.utils.runtimes import load_exported

# Larger images are predicted in tiles, which bounds the memory.
_TILE, _OVERLAP = 1024, 128
# The longest side in pixels of the image of which the feature maps are.
_FEATURES_SIDE = 512
# Smaller images are enlarged before boxes and their text, of a fixed size, are drawn into them.
_DRAWN_SIDE = 720
# Models that are kept.
_MODELS = 4

Shown = list[tuple[np.ndarray, str]]  # RGB images, each with a caption.


class Found(NamedTuple):
    """A class in a prediction: its name, its color in RGB, and how much of it there is."""

    name: str
    color: tuple[int, int, int]
    amount: str


Predicted = tuple[np.ndarray, list[Found]]


class Explorer:
    """Runs the listed models, one call at a time (the caller sees to that).

    Args:
        listed: By name.
        device: For torch.
    """

    def __init__(self, listed: dict[str, Listed], device: torch.device | str = 'cpu') -> None:
        self.listed, self.device = listed, torch.device(device)
        self.model = lru_cache(_MODELS)(self._load)

    def _load(self, name: str, runtime: str) -> nn.Module:
        """A listed model, with an exported file in its place unless the runtime is torch.

        Raises:
            UserError: If a file is missing or does not fit, naming it.
        """
        entry = self.listed[name]
        model = load_model(read_config(entry.config), str(entry.checkpoint), self.device)
        if not isinstance(model.backbone, SwinTransformerV2):
            raise UserError(f"'{entry.config}': the model has no SwinTransformerV2")
        if runtime != TORCH:
            use_exported(model, load_exported(entry.runtimes[runtime], runtime))
        model.visualizer = make_visualizer(model.cfg, model.dataset_meta)
        return model

    def predict(
        self, name: str, runtime: str, window: Window | None, image: np.ndarray, score_thr: float
    ) -> Predicted:
        """The prediction drawn into a BGR image, as RGB, and the classes in it.

        Args:
            window: The attention window; None for the config's.
            score_thr: Smallest score of detections.

        Raises:
            Refused: If an exported file does not take the window, or the size of the image.
            UserError: If the model cannot be loaded.
        """
        if runtime != TORCH and window:
            raise Refused(f'{runtime}: the window of an exported file is that of its export.')
        model = self.model(name, runtime)
        with (
            DefaultScope.overwrite_default_scope(model.cfg.default_scope),
            _window_of(model.backbone, window),
        ):
            try:
                return _PREDICT[self.listed[name].task](model, image, score_thr)
            except UserError as error:  # Of an exported file that is for one size.
                text = first_line(error).removeprefix('--runtime: ')
                raise Refused(f'{runtime}: {text}') from error

    def features(self, name: str, window: Window | None, image: np.ndarray) -> Shown:
        """The feature maps of a BGR image, scaled down, computed by torch; one pixel per token."""
        backbone = self.model(name, TORCH).backbone
        factor = min(1.0, _FEATURES_SIDE / max(image.shape[:2]))
        size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)[..., ::-1]
        pixels = to_tensor(Image.fromarray(np.ascontiguousarray(small))).to(self.device)
        size_of_windows = window.size if window else backbone.window_size
        [maps] = feature_maps(backbone, pixels, [size_of_windows])
        shown = []
        for stage, each in enumerate(maps, 1):
            painted = (colors([each.cpu()])[0].numpy() * 255).astype(np.uint8)
            height, width = each.shape[1:]
            shown.append((painted, f'map {stage}: {height} x {width} tokens, {len(each)} channels'))
        return shown

    def bias(self, name: str, window: Window | None) -> list[tuple[str, Shown]]:
        """For each stage, a title and the position bias of each head of its first block."""
        backbone = self.model(name, TORCH).backbone
        with _window_of(backbone, window):
            windows = backbone.window_size
        stages = []
        for stage, (height, width) in enumerate(windows):
            bias = center_bias(backbone, stage, 0, (height, width)).cpu()
            low, high = bias.min().item(), bias.max().item()
            scaled = ((bias - low) / max(high - low, 1e-12)).numpy()
            painted = (colormaps['viridis'](scaled)[..., :3] * 255).astype(np.uint8)
            title = (
                f'stage {stage + 1}, window {height} x {width}: '
                f'{low:.2f} (dark) to {high:.2f} (yellow)'
            )
            stages.append((title, [(each, f'head {i}') for i, each in enumerate(painted, 1)]))
        return stages


def _window_of(
    backbone: SwinTransformerV2, window: Window | None
) -> AbstractContextManager[SwinTransformerV2 | None]:
    return backbone.window_size_as(window.size) if window else nullcontext()


def _segment(model: nn.Module, image: np.ndarray, _: float) -> Predicted:
    labels, counts = segment(model, image, tiles_of(*image.shape[:2], _TILE, _OVERLAP))
    palette = model.visualizer.dataset_meta['palette']
    found = [
        Found(
            model.dataset_meta['classes'][index], tuple(palette[index]), f'{part:.1%} of the pixels'
        )
        for index, part in enumerate(counts / counts.sum())
        if part
    ]
    return draw_labels(model.visualizer, image, labels)[..., ::-1], found


def _detect(model: nn.Module, image: np.ndarray, score_thr: float) -> Predicted:
    from mmdet.visualization.palette import get_palette

    detections = detect(model, image, tiles_of(*image.shape[:2], _TILE, _OVERLAP), score_thr)
    classes = model.dataset_meta['classes']
    palette = get_palette(model.dataset_meta.get('palette'), len(classes))
    found = []
    for label in detections.labels.unique().tolist():
        scores = detections.scores[detections.labels == label]
        amount = f'{len(scores)}, scores up to {scores.max():.2f}'
        found.append(Found(classes[label], tuple(palette[label]), amount))
    factor = math.ceil(_DRAWN_SIDE / max(image.shape[:2]))
    image, detections = (
        image.repeat(factor, 0).repeat(factor, 1),
        detection.enlarged(detections, factor),
    )
    return draw_detections(model.visualizer, image, detections)[..., ::-1], found


_PREDICT = {'segmentation': _segment, 'detection': _detect}
