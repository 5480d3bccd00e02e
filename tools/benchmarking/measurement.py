"""Running a case: all implementations, round by round, each in a process of its own."""

import argparse
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator

import torch

from tools.benchmarking.cases import LABELS, Case
from tools.benchmarking.process import Worker, WorkerError
from tools.benchmarking.statistics import summarize

# OpenMP's threads go on spinning for some milliseconds after their last work; the next
# implementation shall have the machine to itself.
PAUSE = 0.05


def say(text: str) -> None:
    """Show progress on standard error."""
    print(f'-- {text}', file=sys.stderr, flush=True)


def exceeds_half_of_memory(needs: list[int], device: str) -> bool:
    """Whether what all implementations need, in bytes, is more than half of the memory.

    Idle workers must then give back what the allocator keeps for their next step.
    """
    if device == 'cuda':
        total = torch.cuda.get_device_properties(0).total_memory
    else:
        total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return sum(needs) > total / 2


class Measurement:
    """The implementations of a case. One that fails is left out, and the others go on.

    Attributes:
        workers: The processes of the implementations that have not failed, by name.
        measured: What was measured, by name: ``seconds`` and more.
        left_out: Why an implementation was left out, by name.
    """

    def __init__(self, case: Case, args: argparse.Namespace):
        self.case = case
        self.args = args
        self.workers: dict[str, Worker] = {}
        self.measured: dict[str, dict] = {}
        self.left_out: dict[str, str] = {}

    @contextlib.contextmanager
    def _leave_out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except WorkerError as error:
            say(f'{LABELS[name]} is left out: {error}')
            self.left_out[name] = str(error)
            self.measured.pop(name, None)
            self.workers.pop(name).close()

    def _prepare(self, name: str) -> None:
        """Build an implementation, do its first steps and measure its memory."""
        args, train = self.args, self.case.mode == 'train'
        worker = self.workers[name]
        more = dict(windows_at_once=args.windows_at_once) if name == 'ours_sequential' else {}
        with self._leave_out_if_it_fails(name):
            built = worker.request(
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
            worker.request('run')
            memory = worker.request('memory')
            self.measured[name] = dict(label=LABELS[name], **built, **memory, seconds=[])
            worker.request('trim')
            say(f'{LABELS[name]} is ready')

    def _do_round(self, trim: bool, record: bool) -> None:
        for name, worker in list(self.workers.items()):
            with self._leave_out_if_it_fails(name):
                time.sleep(PAUSE)
                seconds = worker.request('run')['seconds']
                if record:
                    self.measured[name]['seconds'].append(seconds)
                if trim:
                    worker.request('trim')

    def run(self, names: list[str]) -> dict:
        """Run the case; returns its entry in results.json."""
        args = self.args
        try:
            # All processes at once: their imports take longer than many a step.
            for name in names:
                self.workers[name] = Worker(name, args.implementations_folder, args.threads)
            for name in names:
                self._prepare(name)
            needs = [each['bytes'] for each in self.measured.values()]
            trim = exceeds_half_of_memory(needs, args.device)
            for index in range(-args.warm_up, args.rounds):
                self._do_round(trim, record=index >= 0)
                say(f'round {index + 1} of {args.rounds}' if index >= 0 else 'warmed up')
        finally:
            for worker in self.workers.values():
                worker.close()
        multiply_adds = self.measured.get('gemm', {}).get('multiply_adds')
        return dict(
            name=str(self.case),
            case=dataclasses.asdict(self.case),
            trimmed=trim,
            implementations=self.measured,
            left_out=self.left_out,
            **summarize(self.measured, multiply_adds),
        )
