"""Count the parameters and the multiply-adds of a config's model and of its backbone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.engine.runner import load_config
from tools.utils import cli
from tools.utils.complexity import measure_complexity
from tools.utils.table import format_table
from tools.zoo.facts import image_size


def parse_args():
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        '--size',
        type=cli.positive,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='of the image in pixels (default: that of the test)',
    )
    return parser.parse_args()


def main():
    args = parse_args()
    cfg = load_config(args)
    size = tuple(args.size or image_size(cfg))
    rows = [('', 'parameters', 'multiply-adds')]
    for part, found in measure_complexity(cfg, size).items():
        rows.append((part, f'{found.parameters / 1e6:.2f} M', f'{found.multiply_adds / 1e9:.1f} G'))
    print(f'one image of {size[0]} x {size[1]} pixels')
    print(format_table(rows))


if __name__ == '__main__':
    cli.run(main)
