"""Write a segmentor, or the backbone of any config, as ONNX, and hold it against onnxruntime."""

import argparse
import math
import sys
from copy import deepcopy
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from swinv2_backbone.checkpoints.files import atomic_file
from swinv2_backbone.compat import safe_mmengine_globals
from tools.utils import cli
from tools.utils.config_checks import UserError

TOLERANCE = 1e-4
_MOST_STEPS = 64


def parse_args() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='a path, a URL, or a work dir: its newest checkpoint')
    parser.add_argument('--out', type=Path, required=True, help='the .onnx file to write')
    parser.add_argument(
        '--size',
        nargs='+',
        type=cli.positive,
        default=[512],
        metavar='PIXELS',
        help='side of the images, or height and width',
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='the file takes all heights and '
        'widths that are 2 or more whole windows at every stage (multiples of 256 '
        'pixels at window 8); takes minutes',
    )
    parser.add_argument('--batch', type=cli.positive, default=1, help='images at a time')
    parser.add_argument('--backbone', action='store_true', help='the backbone alone')
    args = parser.parse_args()
    if len(args.size) > 2:
        parser.error(f'--size: got {len(args.size)} numbers, allowed: a side, or height and width')
    if args.out.suffix != '.onnx':
        parser.error(f"--out: got '{args.out}', allowed: a .onnx file")
    return args


class AdaptivePool(nn.Module):
    """nn.AdaptiveAvgPool2d as two products, ``(B, C, H, W) -> (B, C, rows, columns)``.

    torch's exporter writes the bins of the image that it traces into the file, and other sizes
    would be pooled wrongly.

    Args:
        size: Rows and columns of bins.
    """

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (
            _bins(bins, length).to(x) for bins, length in zip(self.size, x.shape[2:], strict=True)
        )
        return rows @ x @ columns.t()


def _bins(bins: int, length: int) -> Tensor:
    """The mean of each bin of a line as a product: ``(bins, length)``."""
    index, place = torch.arange(bins)[:, None], torch.arange(length)
    inside = (place >= index * length // bins) & (place < -(-(index + 1) * length // bins))
    return inside / inside.sum(1, keepdim=True)


def without_fixed_bins(model: nn.Module) -> nn.Module:
    """A model with its adaptive poolings replaced, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                size = child.output_size
                module.add_module(
                    name, AdaptivePool((size, size) if isinstance(size, int) else tuple(size))
                )
    return model


class Segmentor(nn.Module):
    """Normalized images to logits of their size: ``(B, 3, H, W) -> (B, classes, H, W)``.

    Args:
        model: mmseg's EncoderDecoder. Normalizing images, and taking the best class, are left to
            whoever runs the file.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x, mode='tensor')
        return F.interpolate(
            logits, x.shape[2:], mode='bilinear', align_corners=self.model.align_corners
        )


def build(cfg: Config, args: argparse.Namespace) -> tuple[nn.Module, list[str]]:
    """What is exported, in eval mode, and the names of its outputs."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    with safe_mmengine_globals():
        load_checkpoint(model, cli.use_checkpoint(cfg, args.checkpoint), 'cpu', strict=True)
    if args.backbone:
        return model.backbone, [f'map{i}' for i in range(len(model.backbone.out_channels))]
    if not hasattr(model, 'decode_head'):
        raise UserError(
            f"config '{args.config}': is no segmentor; of a detector, --backbone alone "
            'can be exported'
        )
    return Segmentor(model).eval(), ['logits']


def side_steps(backbone: nn.Module) -> tuple[int, int]:
    """Height and width in pixels of which multiples need no padding at any stage."""
    return tuple(
        backbone.patch_size
        * math.lcm(*(stage.window[axis] * 2**i for i, stage in enumerate(backbone.layers)))
        for axis in (0, 1)
    )


def check_size(size: tuple[int, int], steps: tuple[int, int]) -> None:
    """Raise a UserError if a file of many sizes cannot be traced at this one."""
    for side, step in zip(size, steps, strict=True):
        if side % step or not 2 <= side // step < _MOST_STEPS - 1:
            raise UserError(
                f'--size: got {size[0]} x {size[1]}, allowed with --dynamic and the '
                f"config's windows: multiples of {steps[0]} x {steps[1]}, from 2 to "
                f'{_MOST_STEPS - 2} times'
            )


def export(
    model: nn.Module,
    image: Tensor,
    outputs: list[str],
    path: Path,
    steps: tuple[int, int] | None = None,
) -> None:
    """Write a model as ONNX, whole or not at all, with weights inside.

    Args:
        model: In eval mode.
        image: ``(B, 3, H, W)``; the file takes images of this size.
        outputs: Names.
        path: The file.
        steps: If the file is to take other sizes, too: of what their height and width are
            multiples, as is the image's; twice the step or more.
    """
    sides = {}
    if steps is not None:
        sides = {
            axis: step * torch.export.Dim(name, min=2, max=_MOST_STEPS)
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
            dynamic_shapes=(sides,) if sides else None,
        )


def largest_difference(model: nn.Module, image: Tensor, path: Path) -> float:
    """How far onnxruntime's outputs are from torch's, relative to the largest value of each."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    with torch.no_grad():
        wanted = model(image)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    found = session.run(None, {'image': image.numpy()})
    if [tuple(each.shape) for each in wanted] != [each.shape for each in found]:
        raise UserError(
            f'{path}: outputs of shapes {[each.shape for each in found]} in '
            f'onnxruntime, {[tuple(each.shape) for each in wanted]} in torch'
        )
    return max(
        ((torch.from_numpy(ours) - theirs).abs().max() / theirs.abs().max()).item()
        for ours, theirs in zip(found, wanted, strict=True)
    )


def main() -> None:
    args = parse_args()
    for module in ('onnx', 'onnxscript', 'onnxruntime'):
        try:
            __import__(module)
        except ImportError as error:
            raise UserError(f'needs {module}: pip install onnx onnxscript onnxruntime') from error
    model, outputs = build(cli.load_config(args), args)
    size, steps = (args.size[0], args.size[-1]), None
    checked, exported = [size], model
    if args.dynamic:
        steps = side_steps(model if args.backbone else model.model.backbone)
        check_size(size, steps)
        exported = without_fixed_bins(deepcopy(model))
        checked.append((size[0] + steps[0], size[1] + 2 * steps[1]))
    images = [torch.rand(args.batch, 3, *size) * 4 - 2 for size in checked]
    export(exported, images[0], outputs, args.out, steps)
    difference = max(largest_difference(model, image, args.out) for image in images)
    if steps:
        print(
            f'{args.out}: takes multiples of {steps[0]} x {steps[1]} pixels, height and width, '
            f'from 2 to {_MOST_STEPS} times; compared at {" and ".join(map(str, checked))}'
        )
    print(
        f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {", ".join(outputs)}; onnxruntime '
        f'and torch differ by {difference:.1e} of the largest value'
    )
    if not difference <= TOLERANCE:
        raise UserError(f'{args.out}: that is more than {TOLERANCE:.0e}')


if __name__ == '__main__':
    cli.run(main)
