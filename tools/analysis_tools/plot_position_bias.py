"""Draw the position bias of a checkpoint from the center token of a window to every token."""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from torch import Tensor

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.checkpoints import arch_of
from swinv2_backbone.checkpoints.files import atomic_file
from swinv2_backbone.layers.windows import Pair
from tools.utils import cli
from tools.utils.checkpoint_model import add_arguments, load_model
from tools.utils.errors import UserError
from tools.utils.maps import center_bias

_HEADS_PER_ROW = 12


def layer(text: str) -> Pair:
    """An argparse type: stage and block, counted from 0, as '1.0'."""
    found = re.fullmatch(r'(\d+)\.(\d+)', text)
    if not found:
        raise argparse.ArgumentTypeError(
            f"got '{text}', allowed: STAGE.BLOCK, counted from 0, as 0.1"
        )
    return int(found[1]), int(found[2])


def parse_args() -> argparse.Namespace:
    parser = cli.OneLineParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        '--window',
        nargs='+',
        type=cli.window,
        metavar='W',
        default=[cli.window(side) for side in ('8', '16', '24')],
        help='windows in tokens: a side as 16, or HEIGHTxWIDTH',
    )
    parser.add_argument(
        '--layers',
        nargs='+',
        type=layer,
        default=[(0, 0)],
        metavar='STAGE.BLOCK',
        help='counted from 0; all heads of each are drawn',
    )
    parser.add_argument(
        '--compare',
        metavar='OTHER',
        help='another checkpoint, such as the fine-tuned one; its rows alternate with the first',
    )
    parser.add_argument(
        '--out',
        nargs='+',
        type=cli.file_type('.png', '.pdf'),
        default=[Path('work_dirs/bias.png')],
        help='files to write, .png or .pdf',
    )
    args = parser.parse_args()
    for window in args.window:
        if isinstance(window.size, list):
            parser.error(f"--window: got '{window.text}', allowed: a side, or HEIGHTxWIDTH")
    return args


@dataclass(frozen=True)
class Row:
    """A row of panels: up to twelve heads of a layer, at a window."""

    title: str
    heads: range  # Counted from 0.
    bias: Tensor  # (heads, Wh, Ww)


def rows_of(model: SwinTransformerV2, name: str, args: argparse.Namespace) -> list[Row]:
    """The rows of a model: every layer at every window."""
    rows = []
    for stage, block in args.layers:
        for window in args.window:
            size = (window.size,) * 2 if isinstance(window.size, int) else window.size
            bias = center_bias(model, stage, block, size)
            title = f'{name}stage {stage + 1}, block {block + 1}\nwindow {size[0]} x {size[1]}'
            for first in range(0, len(bias), _HEADS_PER_ROW):
                part = bias[first : first + _HEADS_PER_ROW]
                rows.append(Row(title, range(first, first + len(part)), part))
    return rows


def draw(rows: list[Row], title: str) -> plt.Figure:
    """A figure of rows of panels that share one color scale."""
    low = min(row.bias.min().item() for row in rows)
    high = max(row.bias.max().item() for row in rows)
    columns = max(len(row.heads) for row in rows)
    figure, grid = plt.subplots(
        len(rows),
        columns,
        squeeze=False,
        layout='constrained',
        figsize=(2.4 + 1.35 * columns, 0.9 + 1.5 * len(rows)),
    )
    for axes_row, row in zip(grid, rows, strict=True):
        for column, axes in enumerate(axes_row):
            if column >= len(row.heads):
                axes.set_axis_off()
                continue
            height, width = row.bias.shape[1:]
            top, left = -(height // 2) - 0.5, -(width // 2) - 0.5
            image = axes.imshow(
                row.bias[column],
                vmin=low,
                vmax=high,
                cmap='viridis',
                extent=(left, left + width, top + height, top),
            )
            axes.plot(0, 0, '+', color='white', markersize=5, markeredgewidth=1)
            axes.set_title(f'head {row.heads[column] + 1}', fontsize=8)
            axes.tick_params(labelsize=7)
        axes_row[0].set_ylabel(row.title, fontsize=8)
    bar = figure.colorbar(image, ax=grid, shrink=min(1.0, 2.4 / (1.5 * len(rows)) + 0.2))
    bar.set_label('position bias, added to the logit', fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel('offset of the key from the query (+), in tokens', fontsize=8)
    return figure


def main() -> None:
    args = parse_args()
    model, _ = load_model(args)
    rows = rows_of(model, '', args)
    title = f'Position bias of {Path(args.checkpoint).name}'
    if args.compare:
        other, _ = load_model(args, args.compare)
        archs = [arch_of(each.state_dict()) for each in (model, other)]
        if archs[0] != archs[1]:
            raise UserError(
                f'--compare: got {args.compare}, a model of {archs[1]}; allowed: the architecture '
                f'of {args.checkpoint}, {archs[0]}'
            )
        # The same layer and window of both models, one below the other.
        pairs = zip(rows_of(model, 'A: ', args), rows_of(other, 'B: ', args), strict=True)
        rows = [row for pair in pairs for row in pair]
        title += f' (A) and {Path(args.compare).name} (B)'
    figure = draw(rows, title)
    for path in args.out:
        with atomic_file(path) as partial:
            figure.savefig(partial, format=path.suffix[1:], dpi=110)
        print(f'-> {path}')


if __name__ == '__main__':
    cli.run(main)
