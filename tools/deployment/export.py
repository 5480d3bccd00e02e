"""Write a segmentor, a detector or a backbone for other runtimes, and compare it with torch.

A file takes normalized images (B, 3, H, W). It returns the logits at the size of the images, the
detections of Faster or Mask R-CNN, or the backbone's maps. One that differs from torch is not kept.
"""

import argparse
import sys
from copy import deepcopy
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.compat import allow_mmengine_checkpoints
from tools.engine.runner import check_checkpoint, load_config, use_checkpoint
from tools.utils import cli
from tools.utils.detections import compare_detections
from tools.utils.detectors import OUTPUTS, Detector
from tools.utils.errors import UserError
from tools.utils.export import TOLERANCE, Segmentor, compare, kept_if_it_passes, write
from tools.utils.images import find_images, open_image, to_tensor
from tools.utils.onnx_operators import ATTENTION_OPSET, BASIC_OPSET
from tools.utils.runtimes import FORMATS, require

_NEEDED = {'onnx': ('onnx', 'onnxscript', 'onnxruntime'), 'openvino': ('onnx', 'onnxscript')}
# Images that are compared, and that int8 is calibrated with.
_COMPARED, _CALIBRATED = 2, 128


def parse_args() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument('checkpoint', help='a path, a URL, or a work dir: its newest checkpoint')
    parser.add_argument('--format', choices=FORMATS, default='onnx')
    parser.add_argument(
        '--out',
        type=cli.file_type(*FORMATS.values()),
        required=True,
        help='the file to write, of the suffix of its format: '
        + ', '.join(f'{suffix} ({name})' for name, suffix in FORMATS.items()),
    )
    parser.add_argument(
        '--size',
        nargs='+',
        type=cli.positive,
        default=[512],
        metavar='PIXELS',
        help='side of the images, or height and width',
    )
    parser.add_argument(
        '--dynamic', action='store_true', help='write a file that takes every height and width'
    )
    parser.add_argument(
        '--precision',
        choices=['fp32', 'bf16', 'int8'],
        default='fp32',
        help='bf16 and int8 are for --format openvino',
    )
    parser.add_argument(
        '--calibration',
        type=Path,
        metavar='DIR',
        help='folder of images to compare with torch, and to calibrate int8 with '
        '(default: random values)',
    )
    parser.add_argument(
        '--opset',
        type=int,
        choices=[BASIC_OPSET, ATTENTION_OPSET],
        help=f'of --format onnx, default: {ATTENTION_OPSET}, which has an operator for attention '
        f'(onnxruntime 1.23 or later), of detectors {BASIC_OPSET}',
    )
    parser.add_argument('--window-size', type=cli.window, metavar='W', help='attention window')
    parser.add_argument('--batch', type=cli.positive, default=1, help='images per batch')
    parser.add_argument(
        '--part',
        choices=['model', 'backbone'],
        default='model',
        help='the whole segmentor or detector, or the backbone of any model',
    )
    args = parser.parse_args()
    if len(args.size) > 2:
        parser.error(f'--size: got {len(args.size)} numbers, allowed: a side, or height and width')
    if args.out.suffix != FORMATS[args.format]:
        parser.error(f"--out: got '{args.out}', allowed: a {FORMATS[args.format]} file")
    if args.precision != 'fp32' and args.format != 'openvino':
        parser.error(f'--precision: got {args.precision}, allowed: fp32 for {args.format}')
    if args.opset and args.format != 'onnx':
        parser.error(f'--opset: got {args.opset} with --format {args.format}, allowed: with onnx')
    if args.precision == 'int8' and (args.calibration is None or args.batch > 1):
        parser.error('--precision: int8 needs --calibration DIR, and --batch 1')
    if args.precision == 'int8' and args.dynamic:  # NNCF fails on the graph of a segmentor.
        parser.error('--precision: int8 needs a fixed size, drop --dynamic')
    return args


def build(cfg: Config, args: argparse.Namespace) -> tuple[nn.Module, list[str]]:
    """The model to export, in eval mode, and the names of its outputs.

    Raises:
        UserError: If the checkpoint does not fit, or the config's model cannot be exported.
    """
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    allow_mmengine_checkpoints()
    checkpoint = CheckpointLoader.load_checkpoint(use_checkpoint(cfg, args.checkpoint), 'cpu')
    check_checkpoint(checkpoint, model, strict=True)
    state = checkpoint.get('state_dict', checkpoint)
    consume_prefix_in_state_dict_if_present(state, 'module.')
    model.load_state_dict(state)
    if args.window_size:
        if not isinstance(model.backbone, SwinTransformerV2):
            raise UserError("--window-size: the config's backbone is no SwinTransformerV2")
        model.backbone.set_window_size(args.window_size.size)
    if args.part == 'backbone':
        return model.backbone, [f'map{i}' for i in range(len(model.backbone.out_channels))]
    if hasattr(model, 'decode_head'):
        return Segmentor(model).eval(), ['logits']
    if args.format not in ('onnx', 'openvino') or args.batch > 1:
        raise UserError(
            f'--format: got {args.format} with --batch {args.batch}, allowed for a detector: onnx '
            'or openvino, with --batch 1'
        )
    if args.opset not in (None, BASIC_OPSET):
        raise UserError(
            f'--opset: got {args.opset}, allowed for a detector: {BASIC_OPSET}, whose RoiAlign '
            'onnxruntime has'
        )
    return Detector(model).eval(), OUTPUTS[: 4 if model.with_mask else 3]


def read_images(args: argparse.Namespace, count: int) -> list[Tensor]:
    """Normalized batches ``(B, 3, H, W)`` of --size, resized, or random ones without a folder."""
    size = args.size[0], args.size[-1]
    if args.calibration is None:
        return [torch.rand(args.batch, 3, *size) * 4 - 2 for _ in range(count)]
    files = find_images(args.calibration)[:count]
    images = [to_tensor(open_image(file))[None] for file in files]
    resized = [F.interpolate(x, size, mode='bilinear', antialias=True) for x in images]
    return [x.expand(args.batch, -1, -1, -1).contiguous() for x in resized]


def other_sizes(image: Tensor, precision: str) -> list[Tensor]:
    """Images of other sizes, cut from one: odd, and narrow."""
    height, width = image.shape[2:]
    # The convolution in bfloat16 is wrong for maps that are one token wide, in torch and in
    # OpenVINO (seen with 2.13.0 and 2026.4.1 on a CPU with AMX).
    narrow = 1 if precision == 'fp32' else 8
    odd = image[:, :, : height // 2 + 1, : width - 3]
    return [odd, image[:, :, : height // 5 + 1, :narrow]]


def with_padding(image: Tensor, detector: Detector) -> Tensor:
    """A copy of an image whose last quarter of rows, and of columns, is padding."""
    height, width = (side - side // 4 for side in image.shape[2:])
    padding = 0, image.shape[3] - width, 0, image.shape[2] - height
    return F.pad(image[:, :, :height, :width], padding, value=detector.pad_value)


def main() -> None:
    args = parse_args()
    require(*_NEEDED.get(args.format, ()), *(['openvino'] if args.format == 'openvino' else []))
    if args.precision == 'int8':
        require('nncf')
    model, outputs = build(load_config(args), args)
    images = read_images(args, _CALIBRATED if args.precision == 'int8' else _COMPARED)
    compared = images[:_COMPARED] + (other_sizes(images[0], args.precision) if args.dynamic else [])
    if isinstance(model, Detector):
        compared.append(with_padding(images[0], model))
    with kept_if_it_passes(args.out) as partial:
        opset = args.opset or (BASIC_OPSET if isinstance(model, Detector) else ATTENTION_OPSET)
        for precision in ['fp32', 'int8'] if args.precision == 'int8' else [args.precision]:
            # (The bounds of int8 are gross ones: mistakes of the graph are to show in float32.)
            options = args.dynamic, precision, images, opset
            write(deepcopy(model), images[0], outputs, partial, *options)
            if isinstance(model, Detector):
                found = compare_detections(model, compared, partial, precision, TOLERANCE)
            else:
                found = compare(model, compared, partial, precision)
    size = 'every height and width' if args.dynamic else ' x '.join(map(str, images[0].shape[2:]))
    kind = 'images' if args.calibration else 'random values'
    print(
        f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {", ".join(outputs)}, takes {size}; '
        f'{found} ({len(compared)} batches of {kind})'
    )


if __name__ == '__main__':
    cli.run(main)
