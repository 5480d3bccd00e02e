"""Write docs/model_zoo.md, model-index.yml and the metafiles, from the configs and measurements.

Configs that were not measured before are measured first, each in a process of its own: a minute or
so each, on a CPU that does nothing else. Those whose toolbox is not installed are left out.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.benchmarking.measurement import say
from tools.engine.runner import TOOLBOXES
from tools.utils import cli
from tools.utils.errors import UserError, did_you_mean
from tools.zoo.facts import load, names
from tools.zoo.measuring import measure, measure_all, read_results
from tools.zoo.metafile import metafiles
from tools.zoo.page import PAGE, page


def parse_args():
    parser = cli.OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'names',
        nargs='*',
        help='configs to measure, as detection/dino_swinv2_tiny_coco (default: those that were not '
        'measured before)',
    )
    parser.add_argument('--again', action='store_true', help='measure all configs again')
    parser.add_argument('--write-only', action='store_true', help='measure nothing')
    parser.add_argument(
        '--untimed', action='store_true', help='leave the time out: the machine does other work'
    )
    parser.add_argument(
        '--step-only',
        action='store_true',
        help='measure time and memory of a training step, and keep the complexity, of configs that '
        'were measured before',
    )
    parser.add_argument('--measure', choices=names(), metavar='NAME', help=argparse.SUPPRESS)
    return parser.parse_args()


def can_measure(toolbox: str) -> bool:
    """Whether models of a toolbox are supported by the tools, and it is installed."""
    return toolbox in TOOLBOXES and importlib.util.find_spec(toolbox) is not None


def to_measure(args: argparse.Namespace) -> list[str]:
    """The names of the configs that the command line asks to be measured, and that can be.

    Raises:
        UserError: If one of them does not exist, or is to keep a complexity that it has not.
    """
    known = names()
    for name in args.names:
        if name not in known:
            raise UserError(f"config '{name}' does not exist{did_you_mean(name, known)}")
    measured = read_results()
    if args.step_only:
        todo = args.names or list(measured)
        if new := [name for name in todo if name not in measured]:
            raise UserError(f'--step-only: not measured before: {", ".join(new)}')
    else:
        todo = args.names or [name for name in known if args.again or name not in measured]
    left = [name for name in todo if not can_measure(load(name).default_scope)]
    if left:
        say(f'not measured, for want of their toolbox: {", ".join(left)}')
    return [name for name in todo if name not in left]


def main():
    args = parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.untimed, args.step_only)))
        return
    if not args.write_only:
        options = ['--untimed'] * args.untimed + ['--step-only'] * args.step_only
        measure_all(to_measure(args), [__file__, *options, '--measure'])
    results = read_results()
    for path, text in {PAGE: page(results), **metafiles(results)}.items():
        path.write_text(text)
        print(f'-> {path}')


if __name__ == '__main__':
    cli.run(main)
