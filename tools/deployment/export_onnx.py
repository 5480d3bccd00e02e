"""Write a segmentor, or the backbone of any config, as ONNX, and hold it against onnxruntime."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from swinv2_backbone.checkpoint_files import whole_file
from swinv2_backbone.compat import mmengine_checkpoints_allowed
from tools import cli
from tools.config_checks import UserError

TOLERANCE = 1e-4


def parse_args() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='a path, a URL, or a work dir: its newest checkpoint')
    parser.add_argument('--out', type=Path, required=True, help='the .onnx file to write')
    parser.add_argument('--size', nargs='+', type=cli.positive, default=[512], metavar='PIXELS',
                        help='side of the pictures, or height and width')
    parser.add_argument('--batch', type=cli.positive, default=1, help='pictures at a time')
    parser.add_argument('--backbone', action='store_true', help='the backbone alone')
    args = parser.parse_args()
    if len(args.size) > 2:
        parser.error(f'--size: got {len(args.size)} numbers, allowed: a side, or height and width')
    if args.out.suffix != '.onnx':
        parser.error(f"--out: got '{args.out}', allowed: a .onnx file")
    return args


class Segmentor(nn.Module):
    """Normalised pictures to logits of their size: ``(B, 3, H, W) -> (B, classes, H, W)``.

    Args:
        model: mmseg's EncoderDecoder. Normalising pictures, and taking the best class, are left to
            whoever runs the file.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x, mode='tensor')
        return F.interpolate(logits, x.shape[2:], mode='bilinear',
                             align_corners=self.model.align_corners)


def build(cfg: Config, args: argparse.Namespace) -> tuple[nn.Module, list[str]]:
    """What is exported, in eval mode, and the names of its outputs."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    with mmengine_checkpoints_allowed():
        load_checkpoint(model, cli.use_checkpoint(cfg, args.checkpoint), 'cpu', strict=True)
    if args.backbone:
        return model.backbone, [f'map{i}' for i in range(len(model.backbone.out_channels))]
    if not hasattr(model, 'decode_head'):
        raise UserError(f"config '{args.config}': is no segmentor; of a detector, --backbone alone "
                        'can be exported')
    return Segmentor(model), ['logits']


def export(model: nn.Module, picture: Tensor, outputs: list[str], path: Path) -> None:
    """Write a model as ONNX, whole or not at all, with weights inside.

    Args:
        model: In eval mode.
        picture: ``(B, 3, H, W)``; the file takes pictures of this size.
        outputs: Names.
        path: The file.
    """
    with whole_file(path) as partial, torch.no_grad():
        torch.onnx.export(model, (picture,), partial, input_names=['picture'],
                          output_names=outputs, dynamo=True, external_data=False, verbose=False)


def largest_difference(model: nn.Module, picture: Tensor, path: Path) -> float:
    """How far onnxruntime's outputs are from torch's, relative to the largest value of each."""
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    with torch.no_grad():
        wanted = model(picture)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    found = session.run(None, {'picture': picture.numpy()})
    if [tuple(each.shape) for each in wanted] != [each.shape for each in found]:
        raise UserError(f'{path}: outputs of shapes {[each.shape for each in found]} in '
                        f'onnxruntime, {[tuple(each.shape) for each in wanted]} in torch')
    return max(((torch.from_numpy(ours) - theirs).abs().max() / theirs.abs().max()).item()
               for ours, theirs in zip(found, wanted, strict=True))


def main() -> None:
    args = parse_args()
    for module in ('onnx', 'onnxscript', 'onnxruntime'):
        try:
            __import__(module)
        except ImportError as error:
            raise UserError(f'needs {module}: pip install onnx onnxscript onnxruntime') from error
    model, outputs = build(cli.load_config(args), args)
    picture = torch.rand(args.batch, 3, args.size[0], args.size[-1]) * 4 - 2
    export(model, picture, outputs, args.out)
    difference = largest_difference(model, picture, args.out)
    print(f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {", ".join(outputs)}; onnxruntime '
          f'and torch differ by {difference:.1e} of the largest value')
    if not difference <= TOLERANCE:
        raise UserError(f'{args.out}: that is more than {TOLERANCE:.0e}')


if __name__ == '__main__':
    cli.run(main)
