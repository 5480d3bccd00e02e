"""Count the launches of kernels in a step of the backbone on an NVIDIA GPU, without one.

Prints a line per case: the launches with weights in half precision, and with float32 weights under
autocast (AMP), which casts them. How they are counted: tools/benchmarking/launches.py.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.benchmarking.arguments import parse_case
from tools.benchmarking.cases import ARCHITECTURES, Case
from tools.benchmarking.launches import count_launches
from tools.utils import cli
from tools.utils.table import format_table

_CASES = [
    f'{mode}:{size}:8' for size in ('512:8', '512:16', '500:8') for mode in ('infer', 'train')
]


def parse_args():
    parser = cli.OneLineParser(description=__doc__)
    parser.add_argument(
        '--cases',
        nargs='+',
        type=parse_case,
        default=[parse_case(text) for text in _CASES],
        metavar='MODE:SIZE:WINDOW:BATCH',
        help=f'what to count (default: {" ".join(_CASES)}; 500 pixels are padded)',
    )
    parser.add_argument('--arch', choices=ARCHITECTURES, default='tiny')
    parser.add_argument('--dtype', choices=['bf16', 'fp16'], default='bf16')
    parser.add_argument(
        '--attention',
        choices=['triton', 'sdpa', 'reference'],
        default='triton',
        help='as SWINV2_ATTENTION (default: %(default)s)',
    )
    parser.add_argument('--by-name', action='store_true', help='also list the kernels')
    return parser.parse_args()


def main():
    args = parse_args()
    os.environ['SWINV2_ATTENTION'] = args.attention
    rows = [('case', f'{args.dtype} weights', 'AMP')]
    lists = []
    for mode, size, window, batch in args.cases:
        case = Case(mode, *size, window, batch, args.dtype)
        counts = [
            count_launches(case, ARCHITECTURES[args.arch], amp).counts for amp in (False, True)
        ]
        rows.append((str(case), *(str(each.total()) for each in counts)))
        by_name = [(name, str(n), str(counts[1][name])) for name, n in counts[0].most_common()]
        by_name += [(name, '0', str(n)) for name, n in counts[1].items() if name not in counts[0]]
        lists.append([rows[0], rows[-1], *by_name])
    print(format_table(rows))
    if args.by_name:
        for each in lists:
            print('', format_table(each), sep='\n')


if __name__ == '__main__':
    cli.run(main)
