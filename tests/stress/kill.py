"""Kill a training with SIGKILL at random moments, resume it, and compare with one never killed.

In every second round it is killed within a save. It must go on from the newest checkpoint that is
whole, end with the same weights bit for bit, and leave no part of a file behind.

    python -m tests.stress.kill --rounds 20
    python -m tests.stress.kill --rounds 20 --config CONFIG    # train.py itself
"""

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.helpers.random_training import outcome
from tests.helpers.scripts import ROOT
from tests.stress.training import MOMENTS, PAUSING
from tools.engine.work_dir import latest_checkpoint

SAVING = 'Saving checkpoint at'


def start(work_dir: Path, *args: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-m', 'tests.stress.training', str(work_dir), *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process: subprocess.Popen, text: str) -> None:
    """Read the output of a process up to a line that has a text."""
    if not any(text in line for line in process.stdout):
        raise AssertionError(f'{process.args}: ended without {text!r}')


def finish(work_dir: Path, *args: str) -> str:
    """The output of a training that must reach its end."""
    process = start(work_dir, *args)
    output = process.communicate()[0]
    if process.returncode:
        raise AssertionError(f'{work_dir}: exit code {process.returncode}\n{output[-3000:]}')
    return output


def kill(work_dir: Path, seconds: float, moment: str | None, count: int, *args: str) -> None:
    """Kill a training some seconds after the begin of its n-th save, or at a moment of that."""
    process = start(work_dir, *(['--pause', moment, str(count)] if moment else []), *args)
    if moment:
        wait_for(process, PAUSING)
    else:
        for _ in range(count):
            wait_for(process, SAVING)
        time.sleep(seconds)
    process.kill()
    process.communicate()


def check(whole: Path, work_dir: Path, *args: str) -> str:
    """Resume a killed training and compare; returns the iteration from which it went on."""
    latest = latest_checkpoint(str(work_dir))
    output = finish(work_dir, '--resume', *args)
    resumed = re.search(r'resumed epoch: \d+, iter: (\d+)', output)
    expected = re.search(r'\d+', Path(latest).name)[0] if latest else None
    if (resumed[1] if resumed else None) != expected:
        raise AssertionError(f'{work_dir}: resumed {resumed}, the newest was {latest}')
    if outcome(latest_checkpoint(str(work_dir))) != outcome(latest_checkpoint(str(whole))):
        raise AssertionError(f'{work_dir}: other weights than those of {whole}')
    names, others = ({p.name for p in d.glob('*.pth*')} for d in (work_dir, whole))
    if names != others:
        raise AssertionError(f'{work_dir}: has {sorted(names)}, {whole} has {sorted(others)}')
    return expected or 'the beginning'


def run(rounds: int, seed: int, folder: Path, config: str | None = None) -> Counter:
    """Kill and resume; returns how often it went on, by where it was killed."""
    options = ['--config', config] if config else []
    generator = random.Random(seed)
    process = start(folder / 'whole', *options)
    wait_for(process, SAVING)
    began = time.monotonic()
    saves = 1 + process.communicate()[0].count(SAVING)
    seconds = (time.monotonic() - began) / saves
    survived: Counter = Counter()
    for number in range(rounds):
        moment = MOMENTS[number // 2 % len(MOMENTS)] if number % 2 else None
        # (Older ones are deleted from the first save on, if only of none.)
        after, count = generator.uniform(0, seconds), generator.randint(1, saves)
        kill(folder / str(number), after, moment, count, *options)
        came_from = check(folder / 'whole', folder / str(number), *options)
        survived[moment or 'any time'] += 1
        when = f'in save {count} ({moment})' if moment else f'{after:.2f} s after save {count}'
        print(f'round {number + 1}: killed {when}, went on from {came_from}: identical', flush=True)
    return survived


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--config', help='a config for train.py (default: a small training)')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        survived = run(args.rounds, args.seed, Path(folder), args.config)
    print(f'{survived.total()} of {args.rounds} went on and ended identical: {dict(survived)}')


if __name__ == '__main__':
    main()
