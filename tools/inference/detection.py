"""Detections of an image, tile by tile, in COCO's results format."""

from typing import NamedTuple

import numpy as np
import torch
from mmcv.ops import batched_nms
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from torch import Tensor

from tools.inference.tiles import Tile

# A box this close to the border of a tile, in pixels, may be part of an object.
_TOUCHES = 2
_NMS_IOU = 0.5
_COVERED = 0.5


class MaskCrop(NamedTuple):
    """The rectangle of an image in which a mask is: its corner, and its pixels ``(h, w)``."""

    top: int
    left: int
    pixels: np.ndarray


class Detections(NamedTuple):
    """Detections of one image: boxes ``(N, 4)`` as x1 y1 x2 y2 in pixels, scores, labels."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: list[MaskCrop] | None = None

    def __getitem__(self, index: Tensor) -> 'Detections':
        masks = None if self.masks is None else [self.masks[i] for i in index.tolist()]
        return Detections(self.boxes[index], self.scores[index], self.labels[index], masks)


def of_tile(instances: InstanceData, score_thr: float, tile: Tile) -> Detections:
    """The detections of a tile, in coordinates of the image."""
    instances = instances[instances.scores >= score_thr].cpu()
    top, left = tile.rows.start, tile.columns.start
    masks = None
    if 'masks' in instances:
        masks = [_crop(np.asarray(mask, bool), top, left) for mask in instances.masks]
    boxes = instances.bboxes.float() + torch.tensor([left, top, left, top])
    return Detections(boxes, instances.scores.float(), instances.labels, masks)


def _crop(mask: np.ndarray, top: int, left: int) -> MaskCrop:
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    if not len(rows):
        return MaskCrop(top, left, np.zeros((0, 0), bool))
    pixels = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    return MaskCrop(top + int(rows[0]), left + int(columns[0]), pixels)


def enlarged(found: Detections, factor: int) -> Detections:
    """The same detections in an image that is larger by an integer factor."""
    masks = found.masks and [
        MaskCrop(top * factor, left * factor, pixels.repeat(factor, 0).repeat(factor, 1))
        for top, left, pixels in found.masks
    ]
    return found._replace(boxes=found.boxes * factor, masks=masks)


def touches_inner_border(boxes: Tensor, tile: Tile, height: int, width: int) -> Tensor:
    """Which boxes end at a border of their tile that is none of the image: ``(N,)``."""
    (top, bottom), (left, right) = tile.rows[:2], tile.columns[:2]
    x1, y1, x2, y2 = boxes.unbind(1)
    return (
        ((x1 <= left + _TOUCHES) & (left > 0))
        | ((y1 <= top + _TOUCHES) & (top > 0))
        | ((x2 >= right - _TOUCHES) & (right < width))
        | ((y2 >= bottom - _TOUCHES) & (bottom < height))
    )


def merge(parts: list[Detections], cut: list[Tensor]) -> Detections:
    """The detections of all tiles as those of one image, highest score first.

    A box that ends at an inner border of its tile is dropped where a whole box of its class covers
    most of it; what no tile has whole stays, in parts. Then follows NMS by class.

    Args:
        cut: For each tile, which of its boxes end at an inner border.
    """
    boxes, scores, labels = (torch.cat(each) for each in list(zip(*parts, strict=True))[:3])
    masks = None if parts[0].masks is None else [mask for part in parts for mask in part.masks]
    found = Detections(boxes, scores, labels, masks)
    if len(parts) == 1:
        return found
    is_cut = torch.cat(cut)
    keep, whole, whole_labels = ~is_cut, boxes[~is_cut], labels[~is_cut]
    for index in is_cut.nonzero()[:, 0].tolist():
        same = whole[whole_labels == labels[index]]
        keep[index] = not (_covered_part(boxes[index], same) > _COVERED).any()
    found = found[keep.nonzero()[:, 0]]
    if not len(found.boxes):
        return found
    options = dict(type='nms', iou_threshold=_NMS_IOU)
    return found[batched_nms(found.boxes, found.scores, found.labels, options)[1]]


def _covered_part(box: Tensor, others: Tensor) -> Tensor:
    """How much of a box each of some others covers, 0 to 1."""
    corner, end = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    return (end - corner).clamp(min=0).prod(1) / (box[2:] - box[:2]).prod().clamp(min=1e-6)


def coco_results(found: Detections, image_id: int, height: int, width: int) -> list[dict]:
    """Entries of COCO's results format, with categories numbered from 1 in the model's order."""
    records = []
    for index, box in enumerate(found.boxes.tolist()):
        record = dict(
            image_id=image_id,
            category_id=int(found.labels[index]) + 1,
            bbox=[box[0], box[1], box[2] - box[0], box[3] - box[1]],
            score=float(found.scores[index]),
        )
        if found.masks is not None:
            record['segmentation'] = encode(found.masks[index], height, width)
        records.append(record)
    return records


def encode(mask: MaskCrop, height: int, width: int) -> dict:
    """COCO's compressed run lengths of a mask in an image of a size.

    Made from the crop alone: the bitmap of a mask in a large image would have its size.
    """
    # Runs go down the columns. A row of zeros above and below ends each within its column.
    steps = np.diff(np.pad(mask.pixels, ((1, 1), (0, 0))).astype(np.int8), axis=0).T
    columns, begins = (steps == 1).nonzero()
    ends = (steps == -1).nonzero()[1]
    offsets = (columns + mask.left) * height + mask.top
    borders = np.stack([offsets + begins, offsets + ends], 1).ravel()
    counts = np.diff(borders, prepend=0, append=height * width)
    rle = coco_mask.frPyObjects(dict(size=[height, width], counts=counts.tolist()), height, width)
    return dict(size=[height, width], counts=rle['counts'].decode())
