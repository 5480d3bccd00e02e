"""Modules and functions that write a model as ONNX and compare it with onnxruntime."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_backbone.checkpoints.files import atomic_file
from tools.utils.errors import UserError

# The largest height and width of a file for many sizes, in multiples of the smallest step.
MAX_STEPS = 64


class AdaptivePool(nn.Module):
    """nn.AdaptiveAvgPool2d as two matrix products, ``(B, C, H, W) -> (B, C, rows, columns)``.

    torch's exporter writes the bins of the traced image into the file, and would pool other sizes
    wrongly.
    """

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (
            _averages(bins, length).to(x)
            for bins, length in zip(self.size, x.shape[2:], strict=True)
        )
        return rows @ x @ columns.t()


def _averages(bins: int, length: int) -> Tensor:
    """The matrix ``(bins, length)`` that averages a line of values over each bin."""
    index, place = torch.arange(bins)[:, None], torch.arange(length)
    inside = (place >= index * length // bins) & (place < -(-(index + 1) * length // bins))
    return inside / inside.sum(1, keepdim=True)


def replace_adaptive_pools(model: nn.Module) -> nn.Module:
    """A model with its nn.AdaptiveAvgPool2d replaced by AdaptivePool, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                size = child.output_size
                size = (size, size) if isinstance(size, int) else tuple(size)
                module.add_module(name, AdaptivePool(size))
    return model


class Segmentor(nn.Module):
    """Normalized images to logits of their size: ``(B, 3, H, W) -> (B, classes, H, W)``.

    The model is mmseg's EncoderDecoder. Normalizing the images and taking the best class are not
    part of the file.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x, mode='tensor')
        return F.interpolate(
            logits, x.shape[2:], mode='bilinear', align_corners=self.model.align_corners
        )


def size_steps(backbone: nn.Module) -> tuple[int, int]:
    """Height and width in pixels whose multiples need no padding at any stage."""
    return tuple(
        backbone.patch_size
        * math.lcm(*(stage.window[axis] * 2**i for i, stage in enumerate(backbone.layers)))
        for axis in (0, 1)
    )


def check_dynamic_size(size: tuple[int, int], steps: tuple[int, int]) -> None:
    """Check that a file for many sizes can be traced at this one.

    Raises:
        UserError: Naming the sizes that are allowed.
    """
    for side, step in zip(size, steps, strict=True):
        if side % step or not 2 <= side // step <= MAX_STEPS - 2:
            raise UserError(
                f'--size: got {size[0]} x {size[1]}, allowed with --dynamic and the '
                f"config's windows: multiples of {steps[0]} x {steps[1]}, from 2 to "
                f'{MAX_STEPS - 2} times'
            )


def export(
    model: nn.Module,
    image: Tensor,
    outputs: list[str],
    path: Path,
    steps: tuple[int, int] | None = None,
) -> None:
    """Write a model as ONNX, atomically, with its weights inside the file.

    Args:
        model: In eval mode.
        image: ``(B, 3, H, W)``; without `steps` the file takes images of this size only.
        outputs: Names of the outputs.
        steps: Makes the file take all multiples of this height and width, from two times on. The
            size of `image` must be one of them.
    """
    sizes = {}
    if steps is not None:
        sizes = {
            axis: step * torch.export.Dim(name, min=2, max=MAX_STEPS)
            for axis, name, step in zip((2, 3), ('rows', 'columns'), steps, strict=True)
        }
    with atomic_file(path) as partial, torch.no_grad():
        torch.onnx.export(
            model,
            (image,),
            partial,
            input_names=['image'],
            output_names=outputs,
            dynamo=True,
            external_data=False,
            verbose=False,
            dynamic_shapes=(sizes,) if sizes else None,
        )


def largest_difference(model: nn.Module, image: Tensor, path: Path) -> float:
    """The largest difference between onnxruntime and torch, relative to each output's maximum.

    Raises:
        UserError: If the shapes of the outputs differ.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    with torch.no_grad():
        expected = model(image)
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = session.run(None, {'image': image.numpy()})
    if [tuple(each.shape) for each in expected] != [each.shape for each in found]:
        raise UserError(
            f'{path}: outputs of shapes {[each.shape for each in found]} in '
            f'onnxruntime, {[tuple(each.shape) for each in expected]} in torch'
        )
    return max(
        ((torch.from_numpy(ours) - theirs).abs().max() / theirs.abs().max()).item()
        for ours, theirs in zip(found, expected, strict=True)
    )
