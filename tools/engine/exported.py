"""Testing an exported model: what its file computes takes the place of the torch model's own."""

from functools import partial

import torch
from torch import Tensor, nn

from tools.utils.detections import to_instances
from tools.utils.errors import UserError
from tools.utils.runtimes import Exported


def use_exported(model: nn.Module, exported: Exported) -> None:
    """Have a model of a toolbox run an exported file, image by image.

    All around it stays: data preprocessor, sliding windows, test-time augmentation, evaluators.

    Args:
        model: mmseg's EncoderDecoder for a file of a segmentor, mmdet's FasterRCNN or MaskRCNN for
            one of a detector; for a file of a backbone, any model with a backbone, whose heads then
            run in torch.

    Raises:
        UserError: If the file is of a segmentor or a detector and the model is none.
    """

    def run(images: Tensor) -> tuple[Tensor, ...]:
        _check_size(images, exported)
        found = [exported(image[None]) for image in images]
        return tuple(torch.cat(each).to(images.device) for each in zip(*found, strict=True))

    if exported.outputs == ('logits',):
        if not hasattr(model, 'decode_head'):
            raise UserError('--runtime: got the file of a segmentor, allowed: of a backbone')
        model.encode_decode = lambda images, metas: run(images)[0]
    elif exported.outputs[:3] == ('boxes', 'scores', 'labels'):
        if not hasattr(model, 'roi_head'):
            raise UserError('--runtime: got the file of a detector, allowed: of a backbone')
        model.predict = partial(_detect, model, exported)
    else:
        model.backbone.forward = run


def _detect(
    model: nn.Module, exported: Exported, images: Tensor, samples: list, rescale: bool = True
) -> list:
    """As `model.predict`, with the detections of a file."""
    _check_size(images, exported)
    found = [[x.to(images.device) for x in exported(image[None])] for image in images]
    instances = [
        to_instances(model, each, sample.metainfo, rescale)
        for each, sample in zip(found, samples, strict=True)
    ]
    return model.add_pred_to_datasample(samples, instances)


def _check_size(images: Tensor, exported: Exported) -> None:
    got = tuple(images.shape[2:])
    if any(side not in (None, g) for side, g in zip(exported.sides, got, strict=True)):
        height, width = exported.sides
        hint = 'export it with --dynamic for all sizes'
        if height == width and max(got) < height:
            option = f'model.data_preprocessor.pad_size_divisor={height}'
            hint += f', or pad images (mmdet: --cfg-options {option})'
        raise UserError(
            f'--runtime: got an image of {got[0]} x {got[1]} (padding included), the file takes '
            f'{height} x {width}; {hint}'
        )
