"""Compare trainings: a table of the last and best values, and their curves in one figure."""

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from swinv2_backbone.checkpoints.files import atomic_file
from tools.utils import cli
from tools.utils.curves import Scalars, draw_panels, is_better_low, main_keys, read_scalars
from tools.utils.errors import UserError, did_you_mean
from tools.utils.table import format_table


def parse_args():
    parser = cli.OneLineParser(description=__doc__)
    parser.add_argument(
        'runs', nargs='+', type=Path, metavar='WORK_DIR', help='work dirs, or scalars.json files'
    )
    parser.add_argument(
        '--keys',
        nargs='+',
        help='what to compare, as loss, decode.loss_ce, lr, mIoU, coco/bbox_mAP (default: the loss '
        'and the main metrics of the validations)',
    )
    parser.add_argument(
        '--out', type=cli.file_type('.png'), help='also draw the curves to this .png file'
    )
    return parser.parse_args()


def labels(paths: list[Path]) -> list[str]:
    """A name for each run: the last part of its path, or the whole path where these are equal."""
    names = [path.resolve().name for path in paths]
    return [
        name if names.count(name) == 1 else str(path)
        for name, path in zip(names, paths, strict=True)
    ]


def comparison(runs: dict[str, Scalars], keys: list[str]) -> str:
    """A table with a row for each run: the last and the best value of each key, and times."""
    head = ['run', 'iterations', 's/iteration']
    for key in keys:
        head += [key, 'best', 'at']
    rows = [head]
    for name, scalars in runs.items():
        curves = [*scalars.train.values(), *scalars.val.values()]
        times = [seconds for _, seconds in scalars.curve('time')]
        row = [name, str(max((curve[-1][0] for curve in curves if curve), default=0))]
        row.append(f'{statistics.median(times):.3g}' if times else '-')
        for key in keys:
            curve = scalars.curve(key)
            if not curve:
                row += ['-'] * 3
                continue
            choose = min if is_better_low(key) else max
            at, best = choose(curve, key=lambda point: point[1])
            row += [f'{curve[-1][1]:.4g}', f'{best:.4g}', str(at)]
        rows.append(row)
    return format_table(rows)


def main():
    args = parse_args()
    runs = dict(zip(labels(args.runs), map(read_scalars, args.runs), strict=True))
    known = dict.fromkeys(key for each in runs.values() for key in (*each.train, *each.val))
    for key in args.keys or ():
        if key not in known:
            hint = did_you_mean(key, known) or f'; allowed: {", ".join(known)}'
            raise UserError(f"--keys: no run has logged '{key}'{hint}")
    keys = args.keys or main_keys(runs.values())
    print(comparison(runs, keys))
    if args.out:
        panels = {key: {name: each.curve(key) for name, each in runs.items()} for key in keys}
        with atomic_file(args.out) as partial:
            draw_panels(panels, Path(partial), 'trainings compared')
        print(f'-> {args.out}')


if __name__ == '__main__':
    cli.run(main)
