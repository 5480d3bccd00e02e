"""Measure the peak memory and the time of updates of the backbone, for each way to save some.

Each way runs in a process of its own, one after the other. Prints a table per size, and writes
results.json and results.md after each way.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from swinv2_backbone.checkpoints.files import atomic_file
from tools.benchmarking import machine, report
from tools.benchmarking.arguments import parse_size
from tools.benchmarking.cases import ARCHITECTURES
from tools.benchmarking.measurement import say
from tools.benchmarking.process import ROOT, environment
from tools.benchmarking.training import Training
from tools.utils import cli
from tools.utils.table import format_table, markdown_table

_EARLY = (True, True, False, False)
WAYS: dict[str, dict] = {
    'plain': {},
    '--amp bf16': dict(amp='bf16'),
    'with_cp, stages 1 and 2': dict(with_cp=_EARLY),
    'with_cp, all stages': dict(with_cp=True),
    '--accumulate 2': dict(accumulate=2),
    '--optimizer fused': dict(optimizer='fused'),
    '--optimizer 8bit': dict(optimizer='8bit'),
    'bf16, with_cp, accumulate, 8bit': dict(
        amp='bf16', with_cp=True, accumulate=2, optimizer='8bit'
    ),
}


def parse_args():
    parser = cli.OneLineParser(description=__doc__)
    add = parser.add_argument
    add('--sizes', nargs='+', type=parse_size, default=[(512, 512), (800, 1344)], metavar='SIZE')
    add('--batch', type=cli.positive, default=2, help='images per update, an even number')
    add('--window', type=cli.positive, default=8, help='attention window in tokens')
    add('--rounds', type=cli.positive, default=5, help='timed updates, after one that is not')
    add('--threads', type=cli.positive, default=torch.get_num_threads(), help='of the CPU')
    add('--device', choices=['cpu', 'cuda'], default='cpu')
    add('--arch', choices=sorted(ARCHITECTURES, reverse=True), default='tiny')
    add('--out', type=Path, default=Path('work_dirs/training_cost'), help='folder of the results')
    args = parser.parse_args()
    if args.batch % 2:
        parser.error(f'argument --batch: got {args.batch}, allowed: an even number')
    return args


def run(training: Training, rounds: int, threads: int) -> dict:
    """What :func:`tools.benchmarking.training.measure` returns, or the reason it could not."""
    request = json.dumps(dict(dataclasses.asdict(training), rounds=rounds, threads=threads))
    done = subprocess.run(
        [sys.executable, '-m', 'tools.benchmarking.training', request],
        cwd=ROOT,
        env=environment('ours', ROOT, threads),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f'status {done.returncode}']
        return dict(left_out=lines[-1])
    return json.loads(done.stdout.splitlines()[-1])


def rows(results: dict[str, dict]) -> list[list[str]]:
    """The cells of a table: memory and time of each way, and their ratios to the first."""
    cells = [['', 'peak MB', 'x plain', 'median s', 'x plain']]
    measured = {name: each for name, each in results.items() if 'bytes' in each}
    first = next(iter(measured.values()), None)
    for name, each in measured.items():
        ratio = each['bytes'] / first['bytes']
        median, of_first = (statistics.median(r['seconds']) for r in (each, first))
        numbers = f'{each["bytes"] / 1e6:.0f}', f'{ratio:.2f}', f'{median:.2f}'
        cells.append([name, *numbers, f'{median / of_first:.2f}'])
    return cells


def notes(results: dict[str, dict]) -> list[str]:
    """A line for each way that was left out."""
    return [f'- {name}: {each["left_out"]}' for name, each in results.items() if 'left_out' in each]


def write(results: dict[str, dict], described: dict, arch: str, out: Path) -> None:
    """Write results.md and results.json, each atomically."""
    text = [f'# Cost of training updates, SwinV2-{arch}', '', *report.header(described)]
    for heading, each in results.items():
        text += ['', f'## {heading}', '', markdown_table(rows(each)), '', *notes(each)]
    contents = {'results.md': '\n'.join(text).rstrip() + '\n'}
    contents['results.json'] = json.dumps(dict(machine=described, results=results), indent=1)
    for file, content in contents.items():
        with atomic_file(out / file) as partial:
            Path(partial).write_text(content)


def main() -> None:
    args = parse_args()
    described = machine.describe(args.device, args.threads, ROOT / '.venv/implementations')
    results: dict[str, dict] = {}
    for height, width in args.sizes:
        title = f'{height}x{width}, {args.batch} images per update, window {args.window}'
        table = results[title] = {}
        for name, changes in WAYS.items():
            base = Training(height, width, args.batch, args.window, args.arch, args.device)
            training = dataclasses.replace(base, **changes)
            table[name] = run(training, args.rounds, args.threads)
            say(f'{title}: {name}: {table[name].get("left_out", "done")}')
            write(results, described, args.arch, args.out)
        print('\n'.join([title, format_table(rows(table)), *notes(table)]), flush=True)
    say(f'-> {args.out}/results.json, results.md')


if __name__ == '__main__':
    cli.run(main)
