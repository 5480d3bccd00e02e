"""Predict images, folders or videos with a config of mmseg or mmdet: drawn images and JSON."""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from mmengine.utils import track_iter_progress
from torch import nn

from tools.engine.exported import use_exported
from tools.engine.runner import load_config, set_window_size
from tools.inference.drawing import DrawnImages
from tools.inference.model import load_model
from tools.inference.predicting import Detecting, Segmenting
from tools.inference.sources import MAX_PIXELS, MAX_PIXELS_IN_TILES, Source, open_source
from tools.inference.tiles import tiles_of
from tools.utils import cli
from tools.utils.runtimes import RUNTIMES, load_exported


def parse_args() -> argparse.Namespace:
    parser = cli.OneLineParser(description=__doc__)
    parser.add_argument('input', type=Path, help='an image, a folder of images, or a video')
    parser.add_argument('--config', required=True, help='config file, or the name of a shipped one')
    parser.add_argument(
        '--checkpoint', required=True, help='a path, a URL, or a work dir: its newest checkpoint'
    )
    parser.add_argument('--out-dir', type=Path, required=True, help='folder for all that is made')
    parser.add_argument('--device', type=cli.device, default='cpu', help='default: cpu')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='mmdet: smallest score of the detections that are written and drawn',
    )
    parser.add_argument(
        '--window-size',
        type=cli.window,
        metavar='W',
        help='attention window instead of the one in the config: a side in tokens as 16, '
        'HEIGHTxWIDTH, or one per stage as 16,16,16,8',
    )
    parser.add_argument(
        '--tile',
        type=cli.positive,
        metavar='PIXELS',
        help='predict in tiles of this side, so that an image needs little more than its own '
        f'memory; images may then have {MAX_PIXELS_IN_TILES:,} pixels, else {MAX_PIXELS:,}',
    )
    parser.add_argument(
        '--overlap',
        type=cli.positive,
        default=128,
        metavar='PIXELS',
        help='of neighboring tiles (default: 128)',
    )
    parser.add_argument(
        '--runtime',
        nargs=2,
        metavar=('RUNTIME', 'FILE'),
        help='run an exported file of the model, or of its backbone (tools/deployment/export.py), '
        f'with {" or ".join(RUNTIMES)}',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=cli.CfgOptions,
        metavar='KEY=VALUE',
        help='override settings of the config',
    )
    # What load_config reads from the command lines of trainings and tests.
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)
    args = parser.parse_args()
    if args.tile and args.tile <= args.overlap:
        parser.error(f'--tile: got {args.tile}, allowed: more than --overlap, {args.overlap}')
    if args.runtime and args.runtime[0] not in RUNTIMES:
        parser.error(f"--runtime: got '{args.runtime[0]}', allowed: {' or '.join(RUNTIMES)}")
    if args.runtime and args.window_size:
        parser.error('--runtime: the window of a file is that of its export, drop --window-size')
    return args


def predict(
    args: argparse.Namespace,
    source: Source,
    images: Iterator[tuple[str, np.ndarray]],
    model: nn.Module,
) -> list[Path]:
    """Predict all images of a source, draw them, and return the JSON files."""
    if model.cfg.default_scope == 'mmdet':
        task = Detecting(model, args.out_dir, args.score_thr)
    else:
        task = Segmenting(model, args.out_dir)
    drawn = DrawnImages(args.out_dir / 'drawn', source, args.input.stem)
    several = len(source.names) > 1
    if several:
        images = track_iter_progress((images, len(source.names)), file=sys.stderr)
    try:
        for name, image in images:
            tiles = tiles_of(*image.shape[:2], args.tile, args.overlap)
            if len(tiles) > 1 and not several:
                tiles = track_iter_progress(tiles, file=sys.stderr)
            drawn.add(name, task(name, image, tiles))
    finally:
        drawn.close()
        files = task.write()  # Also what was done before an error.
    return files


def main() -> None:
    args = parse_args()
    source = open_source(args.input, MAX_PIXELS_IN_TILES if args.tile else MAX_PIXELS)
    cfg = load_config(args)
    # The first image is read before there is a model: OpenCV takes twice the memory of an image
    # while it decodes it.
    images = iter(source)
    images = itertools.chain([next(images)], images)
    model = load_model(cfg, args.checkpoint, args.device)
    if args.window_size:
        set_window_size(model, args.window_size.size)
    if args.runtime:
        use_exported(model, load_exported(Path(args.runtime[1]), args.runtime[0]))
    cli.running = True
    files = predict(args, source, images, model)
    print(f'{len(source.names)} predicted -> {", ".join(map(str, files))}, {args.out_dir}/drawn')


if __name__ == '__main__':
    cli.run(main)
