"""Comparing the detections of an exported file with those of mmdet, and turning them into its."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from tools.utils.detectors import Detector
from tools.utils.errors import UserError
from tools.utils.runtimes import load_exported

# Share of the detections that must be the same. Float32: not all of them, as a rounding may move an
# overlap to the other side of a threshold of NMS. Others: a gross check of those that score at
# least half of the best; whether the accuracy suffices is for a test (tools/test.py --runtime).
_SHARE = {'fp32': 0.98, 'bf16': 0.7, 'int8': 0.7}
_SAME_OBJECT = 0.5


def torch_detections(detector: Detector, image: Tensor) -> tuple[Tensor, ...]:
    """What mmdet's own functions find in an image; as of :class:`Detector`."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import bbox2roi

    model, shape = detector.model, tuple(map(int, detector.size(image)))
    meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    roi_head = model.roi_head
    with torch.no_grad():
        maps = model.extract_feat(image)
        proposals = model.rpn_head.predict(maps, [DetDataSample(metainfo=meta)], rescale=False)
        (found,) = roi_head.predict_bbox(maps, [meta], proposals, roi_head.test_cfg)
        boxes = found.bboxes, found.scores, found.labels
        if not model.with_mask:
            return boxes
        extractor = roi_head.mask_roi_extractor
        features = extractor(maps[: extractor.num_inputs], bbox2roi([found.bboxes]))
        masks = roi_head.mask_head(features).sigmoid()
        labels = 0 if roi_head.mask_head.class_agnostic else found.labels
        return *boxes, masks[torch.arange(len(masks)), labels]


def compare_detections(
    detector: Detector, images: Sequence[Tensor], path: Path, precision: str, tolerance: float
) -> str:
    """Compare a file with the detector that it was made from, on all images together.

    float32: 98 % of the detections of either side have one of the other with the same label, and
    box, score and mask that differ by at most `tolerance` (of the longer side of the image, for
    boxes); detections at the score of the worst that is returned need none. bf16, int8: 70 % of
    those that score at least half of the best have one of the same label with an IoU of 0.5.

    Returns:
        What was found, for people.

    Raises:
        UserError: If too few detections are the same, or torch finds none.
    """
    run, same, count = load_exported(path), 0, 0
    for image in images:
        sides = torch_detections(detector, image), run(image)
        if precision == 'fp32':
            pairs = _equal(*sides, (tolerance * max(image.shape[2:]), tolerance))
            chosen = [_not_at_the_edge(each, detector.model, tolerance) for each in sides]
        else:
            pairs = _same_object(*sides)
            chosen = [scores >= scores.max() / 2 if len(scores) else [] for _, scores, *_ in sides]
        for matched, considered in zip((pairs.any(1), pairs.any(0)), chosen, strict=True):
            same += int(matched[considered].sum())
            count += len(matched[considered])
    if not count:
        raise UserError(
            'nothing was detected, so that nothing can be compared: give --calibration a folder of '
            'images with objects'
        )
    if same < _SHARE[precision] * count:
        raise UserError(
            f'{path.name}: {same} of {count} detections are as in torch, allowed: '
            f'{_SHARE[precision]:.0%}; it was not kept'
        )
    how = f'within {tolerance:.0e}' if precision == 'fp32' else f'by an IoU of {_SAME_OBJECT}'
    return f'{same} of {count} detections (here and in torch) are the same, {how}'


def _equal(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerances: tuple[float, float]
) -> Tensor:
    """Which detections are equal, ``(n, m)``; tolerances are of the boxes and of the rest."""
    pairs = ours[2][:, None] == theirs[2]
    pixels, rest = tolerances
    for i, tolerance in ((0, pixels), (1, rest), (3, rest)):
        if i < len(ours):  # (A file may have no masks.)
            a, b = (x[i].flatten(1) if x[i].ndim > 1 else x[i][:, None] for x in (ours, theirs))
            pairs &= torch.cdist(a, b, p=float('inf')) <= tolerance
    return pairs


def _same_object(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    from mmdet.structures.bbox import bbox_overlaps

    return (bbox_overlaps(ours[0], theirs[0]) >= _SAME_OBJECT) & (ours[2][:, None] == theirs[2])


def _not_at_the_edge(found: Sequence[Tensor], model: nn.Module, tolerance: float) -> Tensor:
    """Detections that a difference in scores cannot remove."""
    cfg, scores = model.roi_head.test_cfg, found[1]
    edge = scores.min().item() if len(scores) == cfg.max_per_img else cfg.score_thr
    return scores > edge + tolerance


def to_instances(
    model: nn.Module, found: Sequence[Tensor], meta: dict[str, Any], rescale: bool
) -> InstanceData:
    """The detections of a file as mmdet's own of the image, masks pasted by mmdet's mask head.

    Args:
        model: mmdet's model of which the file was made.
        found: Boxes, scores, labels, and perhaps masks, as of :class:`Detector`.
        meta: Of the image: `img_shape`, `ori_shape`, `scale_factor`.
        rescale: Whether boxes and masks are to be those of the image as it was before resizing.
    """
    boxes, scores, labels, *masks = found
    result = InstanceData(bboxes=boxes.clone(), scores=scores, labels=labels)
    if masks:
        head = model.roi_head.mask_head
        classes = 1 if head.class_agnostic else head.num_classes
        logits = masks[0].logit()[:, None].expand(-1, classes, -1, -1)
        # (It also scales the boxes.)
        (result,) = head.predict_by_feat(
            [logits], [result], [meta], model.roi_head.test_cfg, rescale
        )
    elif rescale:
        result.bboxes /= boxes.new_tensor(meta['scale_factor']).repeat(2)
    return result
