"""Write a segmentor, or the backbone of any config, as ONNX, and compare it with onnxruntime."""

import argparse
import sys
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from swinv2_backbone.compat import allow_mmengine_checkpoints
from tools.engine.runner import check_checkpoint, load_config, use_checkpoint
from tools.utils import cli
from tools.utils.errors import UserError
from tools.utils.onnx_export import (
    MAX_STEPS,
    Segmentor,
    check_dynamic_size,
    export,
    largest_difference,
    replace_adaptive_pools,
    size_steps,
)

# Relative to the largest value of an output.
TOLERANCE = 1e-4


def parse_args() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument('checkpoint', help='a path, a URL, or a work dir: its newest checkpoint')
    parser.add_argument(
        '--out', type=cli.file_type('.onnx'), required=True, help='the .onnx file to write'
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
        '--dynamic',
        action='store_true',
        help='write a file that takes all heights and widths that are 2 or more whole windows at '
        'every stage (multiples of 256 pixels at window 8); takes minutes',
    )
    parser.add_argument('--batch', type=cli.positive, default=1, help='images per batch')
    parser.add_argument('--backbone', action='store_true', help='export only the backbone')
    args = parser.parse_args()
    if len(args.size) > 2:
        parser.error(f'--size: got {len(args.size)} numbers, allowed: a side, or height and width')
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
    if args.backbone:
        return model.backbone, [f'map{i}' for i in range(len(model.backbone.out_channels))]
    if not hasattr(model, 'decode_head'):
        raise UserError(
            f"config '{args.config}': is no segmentor; of other models only the backbone can be "
            'exported, with --backbone'
        )
    return Segmentor(model).eval(), ['logits']


def main() -> None:
    args = parse_args()
    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if not find_spec(name)]
    if missing:
        raise UserError(f'needs {" ".join(missing)}: pip install onnx onnxscript onnxruntime')
    model, outputs = build(load_config(args), args)
    size, steps = (args.size[0], args.size[-1]), None
    checked, exported = [size], model
    if args.dynamic:
        steps = size_steps(model if args.backbone else model.model.backbone)
        check_dynamic_size(size, steps)
        exported = replace_adaptive_pools(deepcopy(model))
        checked.append((size[0] + steps[0], size[1] + 2 * steps[1]))
    images = [torch.rand(args.batch, 3, *size) * 4 - 2 for size in checked]
    export(exported, images[0], outputs, args.out, steps)
    difference = max(largest_difference(model, image, args.out) for image in images)
    if steps:
        print(
            f'{args.out}: takes multiples of {steps[0]} x {steps[1]} pixels, height and width, '
            f'from 2 to {MAX_STEPS} times; compared at {" and ".join(map(str, checked))}'
        )
    print(
        f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {", ".join(outputs)}; onnxruntime '
        f'and torch differ by {difference:.1e} of the largest value'
    )
    if not difference <= TOLERANCE:
        raise UserError(f'{args.out}: that is more than {TOLERANCE:.0e}')


if __name__ == '__main__':
    cli.run(main)
