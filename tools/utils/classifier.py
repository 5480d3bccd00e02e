"""A checkpoint as an image classifier that runs at any window."""

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine import ProgressBar
from torch import Tensor

from swinv2_backbone import SwinTransformerV2
from tools.utils.errors import UserError
from tools.utils.images import center_crop, open_image, to_tensor


class Classifier:
    """A backbone and, if the checkpoint has one, its linear classifier.

    Args:
        head: ``head.weight`` and, usually, ``head.bias``; empty if there is no classifier.

    Raises:
        UserError: If the head has no weight.
    """

    def __init__(
        self, model: SwinTransformerV2, head: dict[str, Tensor], device: str | torch.device
    ):
        self.model = model.to(device)
        self.device = device
        self.head = {key: value.to(device, torch.float32) for key, value in head.items()}
        if self.head and 'head.weight' not in self.head:
            raise UserError(f'the classifier of the checkpoint has only {", ".join(self.head)}')

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None without a classifier."""
        return len(self.head['head.weight']) if self.head else None

    @property
    def pretrained_window(self) -> int:
        """Pretrained window size of the first stage, in tokens.

        Raises:
            UserError: If a window is no square, because then nor were the images.
        """
        windows = [stage.pretrained_window for stage in self.model.layers]
        if any(height != width for height, width in windows):
            raise UserError(f'pretrained window sizes: got {windows}, allowed: squares')
        return windows[0][0]

    def image_size(self, window: int) -> int:
        """Side in pixels of the images for a window.

        In training stage 4 was one window: of 8 tokens in the w8 and w16 releases (256 pixels), of
        6 in those of w12 (192 pixels). For other windows the images grow in proportion.
        """
        last = self.model.layers[-1].pretrained_window[0]
        pretrained_size = self.model.patch_size * 2 ** (len(self.model.layers) - 1) * last
        return round(pretrained_size * window / self.pretrained_window)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean features ``(B, C)`` of the last stage, and the top five classes ``(B, 5)``."""
        features = self.model(images.to(self.device))[-1].mean((2, 3)).float()
        if not self.head:
            return features.cpu(), features.new_zeros(len(features), 0).long().cpu()
        logits = F.linear(features, self.head['head.weight'], self.head.get('head.bias'))
        return features.cpu(), logits.topk(min(5, self.num_classes)).indices.cpu()

    def classify(
        self, paths: list[Path], window: int, batch: int, bar: ProgressBar
    ) -> tuple[Tensor, Tensor, float]:
        """Features and classes of all images at a window, and seconds per image."""
        outputs, seconds, size = [], 0.0, self.image_size(window)
        with self.model.window_size_as(window):
            for start in range(0, len(paths), batch):
                part = paths[start : start + batch]
                images = torch.stack([to_tensor(center_crop(open_image(p), size)) for p in part])
                begin = time.perf_counter()
                outputs.append(self(images))
                seconds += time.perf_counter() - begin
                bar.update(len(images))
        features, classes = (torch.cat(each) for each in zip(*outputs, strict=True))
        return features, classes, seconds / len(paths)
