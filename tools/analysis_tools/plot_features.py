"""Draw the feature maps of an image at several windows, as colors of principal components."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from PIL import Image, ImageOps
from torch import Tensor

from swinv2_backbone.checkpoints.files import atomic_file
from tools.utils import cli
from tools.utils.checkpoint_model import add_arguments, load_model
from tools.utils.images import open_image, to_tensor
from tools.utils.maps import colors, feature_maps


def parse_args() -> argparse.Namespace:
    parser = cli.OneLineParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument('image', type=Path)
    parser.add_argument(
        '--windows',
        nargs='+',
        type=cli.window,
        metavar='W',
        default=[cli.window('8'), cli.window('16')],
        help='in tokens: a side as 16, HEIGHTxWIDTH, or one per stage as 16,16,16,8',
    )
    parser.add_argument(
        '--size', type=cli.positive, default=512, help='short side of the scaled image in pixels'
    )
    parser.add_argument(
        '--out',
        type=cli.file_type('.png', '.pdf'),
        default=Path('work_dirs/features.png'),
        help='the file to write, .png or .pdf',
    )
    return parser.parse_args()


def distance(maps: Tensor, reference: Tensor) -> float:
    """The norm of the difference, relative to the norm of the reference."""
    return ((maps - reference).norm() / reference.norm()).item()


def draw(
    image: Image.Image, maps: list[list[Tensor]], windows: list[cli.Window], title: str
) -> plt.Figure:
    """A figure with one row per window: the image, then the map of each stage."""
    stages = len(maps[0])
    height = 2.3 * image.height / image.width + 0.4
    figure, grid = plt.subplots(
        len(windows),
        1 + stages,
        squeeze=False,
        layout='constrained',
        figsize=(2.3 * (1 + stages), height * len(windows) + 0.5),
    )
    painted = [colors([row[stage] for row in maps]) for stage in range(stages)]
    for index, (axes_row, window) in enumerate(zip(grid, windows, strict=True)):
        axes_row[0].imshow(image)
        axes_row[0].set_ylabel(f'window {window.text}', fontsize=10)
        axes_row[0].set_title(f'{image.height} x {image.width} pixels', fontsize=8)
        for stage, axes in enumerate(axes_row[1:]):
            axes.imshow(painted[stage][index], interpolation='nearest')
            size = maps[index][stage].shape
            name = f'stage {stage + 1}: {size[1]} x {size[2]} tokens'
            if index:
                name += f'\nchanged by {distance(maps[index][stage], maps[0][stage]):.0%}'
            axes.set_title(name, fontsize=8)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(title, fontsize=10)
    return figure


def main() -> None:
    args = parse_args()
    model, _ = load_model(args)
    image = open_image(args.image)
    image = ImageOps.scale(image, args.size / min(image.size))  # bicubic
    maps = feature_maps(model, to_tensor(image), [window.size for window in args.windows])
    figure = draw(
        image,
        maps,
        args.windows,
        f'Features of {Path(args.checkpoint).name}: the '
        'first three principal components as red, green, blue',
    )
    with atomic_file(args.out) as partial:
        figure.savefig(partial, format=args.out.suffix[1:], dpi=110)
    print(f'-> {args.out}')


if __name__ == '__main__':
    cli.run(main)
