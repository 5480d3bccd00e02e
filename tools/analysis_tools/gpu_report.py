"""Check and time everything on a GPU, with one command that ends within its budget.

Sections are done in the order of their importance, and left out when the time runs out.
results.json, results.md and chart.png are written after each: nothing is lost with the process.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tools.benchmarking import machine, report
from tools.benchmarking.arguments import probability
from tools.benchmarking.measurement import say
from tools.benchmarking.process import ROOT
from tools.gpu import goals, report_text, sections
from tools.gpu.budget import Budget
from tools.gpu.timings import LEAST, Compilation, Settings, Timings
from tools.utils import cli
from tools.utils.errors import UserError

COMMAND = (
    'python3 -m pip install -q --no-index --no-deps --find-links .gpu_wheels '
    '-r .gpu_wheels/names.txt && '
    'python3 tools/analysis_tools/gpu_report.py --out "${OUT:-work_dirs/gpu_report}"'
)
# Of the whole budget, by when what is not timed ends: checks, and compilation beside them.
_COMPILED_BY = 0.42
# What a section may take, in seconds.
_LONGEST = {'correctness': 150.0, 'sanitizer': 90.0, 'tiles': 100.0, 'profile': 45.0}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line.

    Raises:
        UserError: If there is no GPU, or a dry run is to be on one.
    """
    parser = cli.OneLineParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--device', choices=['cuda', 'cpu'], default='cuda')
    add('--dry', action='store_true', help='on a CPU: every part, with tiny sizes, in minutes')
    add('--budget', type=cli.positive, default=540, help='seconds')
    add('--threads', type=cli.positive, default=torch.get_num_threads(), help='of the CPU')
    add('--drop-path', type=probability, default=0.2, help='drop path rate in train mode')
    add('--out', type=Path, default=ROOT / 'work_dirs/gpu_report')
    folder = ROOT / '.venv/implementations'
    add('--implementations-folder', type=Path, default=folder, help='as for the benchmark')
    args = parser.parse_args(argv)
    if args.dry != (args.device == 'cpu'):
        raise UserError('--dry: allowed with --device cpu, and needed there')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError(
            "--device: got 'cuda', but torch sees no GPU here. Run `make gpu-wheels`, carry this "
            f'folder to a machine with a GPU, and run there: {COMMAND}'
        )
    return args


class Report:
    """Collects what is measured, and writes it after each section."""

    def __init__(self, args: argparse.Namespace, budget: Budget):
        self.args, self.budget = args, budget
        self.results = dict(
            machine=machine.describe(args.device, args.threads, args.implementations_folder),
            settings=dict(arch='mini' if args.dry else 'tiny', dry=args.dry, budget=args.budget),
            left_out={},
            goals=[],
            sections={},
            cases=[],
        )

    def write(self) -> None:
        results = self.results
        results['goals'] = goals.judge(results['cases'])
        results['settings']['seconds'] = round(self.budget.used)
        report.write(results, report_text.markdown(results), self.args.out)

    def add(self, name: str, section, until: float = 1.0) -> None:
        """Do a section, until this fraction of the budget is used at most."""
        at_most = min(_LONGEST[name], self.budget.share(until))
        if at_most < LEAST:
            self.results['left_out'][name] = 'no time was left'
        else:
            self.results['sections'][name] = sections.attempt(name, section, self.args, at_most)
        self.write()

    def add_timings(self, settings: Settings, compilation: Compilation) -> None:
        """Time every case, until the budget runs out."""
        timings = Timings(settings, self.budget, compilation)
        try:
            for case in settings.cases:
                if self.budget.left < LEAST:
                    self.results['left_out'][str(case)] = 'no time was left'
                    continue
                say(f'{case}; {self.budget.left:.0f} s left')
                self.results['cases'].append(timings.run(case))
                print(report.text_table(self.results['cases'][-1]), end='\n\n', flush=True)
                self.write()
        finally:
            timings.close()


def main() -> None:
    args = parse_args()
    # As an exception, so that the workers are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    budget = Budget(args.budget)
    # Else each of the processes that compile beside each other starts one per core.
    os.environ.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '4')
    whole, settings = Report(args, budget), Settings(args)
    whole.write()
    compilation = Compilation(settings, budget)
    try:
        whole.add('correctness', sections.correctness, _COMPILED_BY)
        whole.add('sanitizer', sections.sanitized, _COMPILED_BY)
        compilation.stop(budget.share(_COMPILED_BY))
        whole.add_timings(settings, compilation)
    finally:
        compilation.close()
    whole.add('tiles', sections.tiles)
    whole.add('profile', sections.profile)
    whole.write()
    for goal in whole.results['goals']:
        print(f'{goal["verdict"]}: {goal["goal"]}, {goal["case"]}')
    say(f'-> {args.out}; {budget.used:.0f} s of {budget.seconds:.0f}')


if __name__ == '__main__':
    cli.run(main)
