"""Time this backbone against other implementations of SwinV2, side by side.

In each round every implementation does one step, one after the other, each in a process of its own,
so that what slows the machine down slows all of them. Prints a table per case, and writes
results.json (with all raw times), results.md and chart.png after each case.
"""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.benchmarking import machine, report
from tools.benchmarking.arguments import cases_of, parse_args
from tools.benchmarking.measurement import Measurement, say
from tools.utils import cli


def main() -> None:
    args = parse_args()
    # As an exception, so that the workers are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    names = [
        'ours',
        *['ours_reference'] * args.reference,
        *['ours_sequential'] * bool(args.windows_at_once),
        *['ours_half_backward'] * args.half_backward,
        *['ours_without_onednn'] * args.without_onednn,
        *args.implementations,
        'gemm',
    ]
    settings = ('arch', 'drop_path', 'compile', 'rounds', 'warm_up', 'windows_at_once')
    results = dict(
        machine=machine.describe(args.device, args.threads, args.implementations_folder),
        settings={name: getattr(args, name) for name in settings},
        cases=[],
    )
    cases = cases_of(args)
    for index, case in enumerate(cases):
        say(f'case {index + 1} of {len(cases)}: {case}')
        results['cases'].append(Measurement(case, args).run(names))
        print(report.text_table(results['cases'][-1]), end='\n\n', flush=True)
        report.write(results, report.markdown(results), args.out)
    say(f'-> {args.out}/results.json, results.md, chart.png')


if __name__ == '__main__':
    cli.run(main)
