"""Time this backbone against other implementations of SwinV2, side by side.

In a round every implementation does one step after the other, each in a process of its own, so that
what slows the machine down slows all of them. Prints a table a case, and writes results.json (with
all raw times), results.md and chart.png after each case.
"""

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tools.benchmarking import machine, report
from tools.benchmarking.arguments import cases_of, parse_args
from tools.benchmarking.cases import LABELS, Case
from tools.benchmarking.process import Worker, WorkerError
from tools.benchmarking.statistics import summarize
from tools.utils import cli

# Threads of OpenMP's go on spinning for some milliseconds after their last work; the next
# implementation is to have the machine for itself.
_CALM = 0.05


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f'-- {text}', file=sys.stderr, flush=True)


def large(needs: list[int], device: str) -> bool:
    """Whether what implementations need, in bytes, is more than half of the memory taken together.

    Then idle workers cannot be left with what the allocator keeps for their next step.
    """
    if device == 'cuda':
        whole = torch.cuda.get_device_properties(0).total_memory
    else:
        whole = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return sum(needs) > whole / 2


class Race:
    """The implementations of a case. One that fails is left out, and the others go on.

    Args:
        case: What is measured.
        args: The command line.

    Attributes:
        workers: Of those that are still in it, by name.
        found: By name, what was measured: ``seconds`` and more.
        left_out: By name, why.
    """

    def __init__(self, case: Case, args: argparse.Namespace):
        self.case = case
        self.args = args
        self.workers: dict[str, Worker] = {}
        self.found: dict[str, dict] = {}
        self.left_out: dict[str, str] = {}

    @contextlib.contextmanager
    def _attempt(self, name: str) -> Iterator[None]:
        try:
            yield
        except WorkerError as error:
            say(f'{LABELS[name]} is left out: {error}')
            self.left_out[name] = str(error)
            self.found.pop(name, None)
            self.workers.pop(name).close()

    def _prepare(self, name: str) -> None:
        """Build an implementation; its first steps, and its memory."""
        args, train = self.args, self.case.mode == 'train'
        worker = self.workers[name]
        more = dict(windows_at_once=args.windows_at_once) if name == 'ours_sequential' else {}
        with self._attempt(name):
            built = worker.ask(
                'build',
                implementation=name,
                case=dataclasses.asdict(self.case),
                arch=args.arch,
                drop_path=args.drop_path if train else 0.0,
                device=args.device,
                compile=args.compile,
                threads=args.threads,
                **more,
            )
            worker.ask('run')
            self.found[name] = dict(label=LABELS[name], **built, **worker.ask('memory'), seconds=[])
            worker.ask('trim')
            say(f'{LABELS[name]} is ready')

    def _round(self, trim: bool, keep: bool) -> None:
        for name, worker in list(self.workers.items()):
            with self._attempt(name):
                time.sleep(_CALM)
                seconds = worker.ask('run')['seconds']
                if keep:
                    self.found[name]['seconds'].append(seconds)
                if trim:
                    worker.ask('trim')

    def run(self, implementations: list[str]) -> dict:
        """Run the case; returns what is written of it to results.json."""
        try:
            # All processes at once: their imports take longer than many a step.
            for name in implementations:
                self.workers[name] = Worker(
                    name, self.args.implementations_folder, self.args.threads
                )
            for name in implementations:
                self._prepare(name)
            trim = large([each['bytes'] for each in self.found.values()], self.args.device)
            for index in range(-self.args.warm_up, self.args.rounds):
                self._round(trim, keep=index >= 0)
                say(f'round {index + 1} of {self.args.rounds}' if index >= 0 else 'warmed up')
        finally:
            for worker in self.workers.values():
                worker.close()
        multiply_adds = self.found.get('gemm', {}).get('multiply_adds')
        return dict(
            name=str(self.case),
            case=dataclasses.asdict(self.case),
            trimmed=trim,
            implementations=self.found,
            left_out=self.left_out,
            **summarize(self.found, multiply_adds),
        )


def main():
    args = parse_args()
    # As an exception, so that the workers are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    names = [
        'ours',
        *['ours_plain'] * args.plain,
        *['ours_sequential'] * bool(args.windows_at_once),
        *args.implementations,
        'gemm',
    ]
    results = dict(
        machine=machine.describe(args.device, args.threads, args.implementations_folder),
        settings=dict(
            arch=args.arch,
            drop_path=args.drop_path,
            compile=args.compile,
            rounds=args.rounds,
            warm_up=args.warm_up,
            windows_at_once=args.windows_at_once,
        ),
        cases=[],
    )
    cases = cases_of(args)
    for index, case in enumerate(cases):
        say(f'case {index + 1} of {len(cases)}: {case}')
        results['cases'].append(Race(case, args).run(names))
        print(report.text_table(results['cases'][-1]), end='\n\n', flush=True)
        report.write(results, args.out)
    say(f'-> {args.out}/results.json, results.md, chart.png')


if __name__ == '__main__':
    cli.run(main)
