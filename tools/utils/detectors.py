"""mmdet's Faster and Mask R-CNN as a graph, with NMS and RoIAlign as operators of ONNX."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tools.utils.errors import UserError

# What marks boxes that take no part in a suppression; scores are at least 0.
LEFT_OUT = -1.0
# Of what a detector consists: the path of a module, and the class that is exported.
_PARTS = {
    'rpn_head': 'RPNHead',
    'rpn_head.prior_generator': 'AnchorGenerator',
    'rpn_head.bbox_coder': 'DeltaXYWHBBoxCoder',
    'roi_head': 'StandardRoIHead',
    'roi_head.bbox_roi_extractor': 'SingleRoIExtractor',
    'roi_head.bbox_head.bbox_coder': 'DeltaXYWHBBoxCoder',
    'roi_head.mask_roi_extractor': 'SingleRoIExtractor',
    'roi_head.mask_head': 'FCNMaskHead',
}
_NMS_KEYS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
OUTPUTS = ['boxes', 'scores', 'labels', 'masks']


@torch.library.custom_op('swinv2_tools::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou: float, count: int) -> Tensor:
    """Indices of the boxes that survive, highest score first: ``(N, 4), (N,) -> (n,)``.

    Args:
        scores: Boxes of negative scores are left out.
        iou: A box is suppressed if it overlaps a better one by more.
        count: Most indices that are returned.
    """
    from mmcv.ops import nms as mmcv_nms

    valid = (scores >= 0).nonzero()[:, 0]
    return valid[mmcv_nms(boxes[valid], scores[valid], iou)[1]][:count]


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, count: int) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size(min=0, max=count)
    return scores.new_empty(kept, dtype=torch.long)


@torch.library.custom_op('swinv2_tools::roi_align', mutates_args=())
def roi_align(
    maps: Tensor, rois: Tensor, size: list[int], scale: float, samples: int, aligned: bool
) -> Tensor:
    """mmcv's RoIAlign: ``(1, C, H, W), (N, 5) -> (N, C, *size)``."""
    from mmcv.ops import roi_align as mmcv_roi_align

    return mmcv_roi_align(maps, rois, tuple(size), scale, samples, 'avg', aligned)


@roi_align.register_fake
def _(maps, rois, size, scale, samples, aligned):
    return maps.new_empty(rois.shape[0], maps.shape[1], *size)


class Detector(nn.Module):
    """A normalized image to detections, best first, as mmdet's test of one.

    ``(1, 3, H, W)`` to boxes ``(N, 4)`` as x1 y1 x2 y2 in pixels of the input, scores ``(N,)``,
    labels ``(N,)``, and, if there is a mask head, the probabilities ``(N, h, w)`` that points of a
    grid over the box are of the object.

    Args:
        model: mmdet's FasterRCNN or MaskRCNN.

    Raises:
        UserError: If a part of the model, or a setting of its test, is not supported.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        _check(model)
        self.model = model
        self.pad_value = getattr(model.data_preprocessor, 'pad_value', 0)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps, size = self.model.extract_feat(image), self.size(image)
        proposals = self._proposals(maps, size)
        boxes, scores, labels = self._boxes(maps, proposals, size)
        masks = (self._masks(maps, boxes, labels),) if self.model.with_mask else ()
        return boxes, scores, labels, *masks

    def size(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Height and width of an image without the padding of the model's data preprocessor.

        That is below and to the right, and 0 if not configured otherwise. A pixel is not 0 in all
        channels where the means that are subtracted are no integers, such as ImageNet's.
        """
        used = (image[0] != self.pad_value).any(0)
        rows, columns = used.any(1), used.any(0)
        height, width = ((x * torch.arange(1, x.shape[0] + 1)).max() for x in (rows, columns))
        return height, width

    def _proposals(self, maps: Sequence[Tensor], size: Sequence[Tensor]) -> Tensor:
        head, cfg = self.model.rpn_head, self.model.rpn_head.test_cfg
        logits, deltas = head(maps)
        anchors = head.prior_generator.grid_priors([x.shape[2:] for x in logits], device='cpu')
        parts = []
        for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
            scores = logit[0].permute(1, 2, 0).flatten().sigmoid()
            delta = delta[0].permute(1, 2, 0).reshape(-1, 4)
            if cfg.get('nms_pre', -1) > 0:
                scores, best = scores.topk(torch.sym_min(cfg.nms_pre, scores.shape[0]))
                delta, anchor = delta[best], anchor[best]
            parts.append((scores, delta, anchor, torch.full_like(scores, level)))
        scores, delta, anchor, levels = map(torch.cat, zip(*parts, strict=True))
        boxes = _decode(head.bbox_coder, anchor, delta, size)
        smallest = cfg.get('min_bbox_size', -1)
        valid = torch.ones_like(scores, dtype=torch.bool)
        if smallest >= 0:
            valid = (boxes[:, 2:] - boxes[:, :2] > smallest).all(1)
        return boxes[_suppress(boxes, scores, levels, valid, cfg)]

    def _boxes(
        self, maps: Sequence[Tensor], proposals: Tensor, size: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        head, cfg = self.model.roi_head.bbox_head, self.model.roi_head.test_cfg
        features = _extract(self.model.roi_head.bbox_roi_extractor, maps, proposals)
        logits, deltas = head(features)
        scores = logits.softmax(-1)[:, :-1]
        boxes = _decode(head.bbox_coder, proposals, deltas, size).unflatten(1, (-1, 4))
        boxes = boxes.expand(-1, head.num_classes, -1).reshape(-1, 4)
        labels = torch.arange(head.num_classes).expand_as(scores).reshape(-1)
        scores = scores.reshape(-1)
        index = _suppress(boxes, scores, labels, scores > cfg.score_thr, cfg)
        return boxes[index], scores[index], labels[index]

    def _masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        head = self.model.roi_head.mask_head
        logits = head(_extract(self.model.roi_head.mask_roi_extractor, maps, boxes))
        if head.class_agnostic:
            return logits[:, 0].sigmoid()
        first = torch.arange(labels.shape[0]) * head.num_classes
        return logits.flatten(0, 1)[first + labels].sigmoid()


def _check(model: nn.Module) -> None:
    parts = dict(model.named_modules())
    heads = [getattr(model, name, None) for name in ('rpn_head', 'roi_head')]
    if None in heads:
        raise UserError(
            f'config: got a {type(model).__name__}, allowed: a segmentor, FasterRCNN or MaskRCNN; '
            'of other models only the backbone can be exported, with --part backbone'
        )
    for path, allowed in _PARTS.items():
        parent, _, name = path.rpartition('.')
        part = getattr(parts.get(parent, model), name, None)
        if part is None and 'mask' in path:
            continue
        if type(part).__name__ != allowed:
            raise UserError(
                f'config: got {type(part).__name__} as {path}, allowed: {allowed}; of other '
                'detectors only the backbone can be exported, with --part backbone'
            )
    for name, head in zip(('rpn', 'rcnn'), heads, strict=True):
        suppression = head.test_cfg.nms
        if suppression.get('type', 'nms') != 'nms' or set(suppression) - _NMS_KEYS:
            raise UserError(
                f'config: got {dict(suppression)} as test_cfg.{name}.nms, allowed: type nms with '
                'iou_threshold, class_agnostic and split_thr'
            )
        if head.test_cfg.get('max_per_img', -1) <= 0:
            raise UserError(f'config: test_cfg.{name}.max_per_img is missing, allowed: from 1 on')
    if model.roi_head.with_shared_head or model.roi_head.bbox_head.custom_cls_channels:
        raise UserError('config: got a shared head or a loss with its own scores, allowed: none')


def _decode(coder: object, boxes: Tensor, deltas: Tensor, size: Sequence[Tensor]) -> Tensor:
    """Boxes moved by deltas, inside of the image: ``(N, 4), (N, k * 4) -> (N, k * 4)``."""
    torch._check(boxes.shape[0] > 0)  # The coder asks.
    decoded = coder.decode(boxes, deltas)
    if not coder.clip_border:
        return decoded
    height, width = (length.to(decoded) for length in size)
    x, y = decoded[:, 0::2].clamp(min=0).min(width), decoded[:, 1::2].clamp(min=0).min(height)
    return torch.stack([x, y], 2).flatten(1)


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, cfg: dict) -> Tensor:
    """Indices of the boxes that survive in their groups, as mmcv's batched_nms, best first."""
    if not cfg.nms.get('class_agnostic', False):
        # Groups are moved apart, by the same sums as there, which round in the same way.
        largest = torch.where(valid[:, None], boxes, 0).max()
        boxes = boxes + (groups.to(boxes) * (largest + 1))[:, None]
    scores = torch.where(valid, scores, LEFT_OUT)
    return nms(boxes, scores, cfg.nms.get('iou_threshold', cfg.nms.get('iou_thr')), cfg.max_per_img)


def _extract(extractor: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """What mmdet's SingleRoIExtractor takes from the maps: ``(N, 4) -> (N, C, h, w)``."""
    layers = extractor.roi_layers
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    levels = extractor.map_roi_levels(rois, len(layers))
    parts = []
    for level, layer in enumerate(layers):
        chosen = rois[(levels == level).nonzero()[:, 0]]
        settings = layer.spatial_scale, layer.sampling_ratio, layer.aligned
        parts.append(roi_align(maps[level], chosen, list(layer.output_size), *settings))
    # From the order of the levels back to that of the boxes.
    member = (levels[:, None] == torch.arange(len(layers))).long()
    count = member.sum(0)
    place = (member * (member.cumsum(0) - 1 + count.cumsum(0) - count)).sum(1)
    return torch.cat(parts)[place]
