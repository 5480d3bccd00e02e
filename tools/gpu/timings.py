"""Times of the networks on a GPU: eager, compiled, and either in a CUDA graph."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

from tools.benchmarking.cases import Case, network_of
from tools.benchmarking.measurement import say
from tools.benchmarking.process import Worker, WorkerError
from tools.benchmarking.statistics import summarize
from tools.gpu.budget import Budget

NETWORKS = ('ours', 'timm', 'swin_v1', 'ours_sdpa')
COMPILED = ('ours', 'timm')
# In the order of their importance.
CASES = (
    Case('train', 512, 512, 16, 8, 'bf16'),
    Case('infer', 512, 512, 16, 8, 'bf16'),
    Case('train', 512, 512, 8, 8, 'bf16'),
    Case('infer', 512, 512, 8, 8, 'bf16'),
    Case('train', 800, 1344, 16, 2, 'bf16'),
    Case('infer', 800, 1344, 16, 2, 'bf16'),
    Case('infer', 1024, 1024, 16, 8, 'bf16'),
    Case('train', 1024, 1024, 16, 8, 'bf16'),
)
# The same paths in seconds on a CPU: with padding, and with a window larger than the last map.
DRY_CASES = (Case('train', 72, 100, 8, 1, 'bf16'), Case('infer', 64, 64, 16, 1, 'bf16'))
# Each pass measures every network once, so that a drift of the clock shows as a difference.
PASSES = 2
_ROUNDS = {'infer': 20, 'train': 10}
_DRY_ROUNDS = 2
# Seconds for which nothing that takes long is begun.
LEAST = 15.0
_LONGEST_REQUEST = 60.0


class Settings:
    """How networks are built and measured.

    Args:
        args: device, dry, threads, implementations_folder and drop_path of the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.cases = DRY_CASES if args.dry else CASES
        # In a dry run, tracing alone: the compiler takes minutes on a CPU.
        self.backend = 'eager' if args.dry else 'inductor'
        self.parallel = 1 if args.dry else max(1, (os.cpu_count() or 1) // 2)

    def rounds(self, case: Case) -> int:
        return _DRY_ROUNDS if self.args.dry else _ROUNDS[case.mode]

    def at_most(self, budget: Budget) -> float:
        """Seconds that a request may take: what is left, up to a minute."""
        return min(_LONGEST_REQUEST, max(1.0, budget.left))

    def start(self, network: str) -> Worker:
        return Worker(network, self.args.implementations_folder, self.args.threads)

    def build(self, worker: Worker, network: str, case: Case, compiled: bool, at_most: float):
        """Build a network in a worker, do its first step and check its maps."""
        worker.request(
            'build',
            timeout=at_most,
            implementation=network,
            case=dataclasses.asdict(case),
            arch='mini' if self.args.dry else 'tiny',
            drop_path=self.args.drop_path if case.mode == 'train' else 0.0,
            device=self.args.device,
            compile=self.backend if compiled else False,
            threads=self.args.threads,
        )


class Compilation:
    """Compiles in processes of their own, several at a time, while nothing is being timed.

    Attributes:
        workers: Those that have compiled, by network and case.
        left_out: Why others have not.
    """

    def __init__(self, settings: Settings, budget: Budget):
        self.settings, self.budget = settings, budget
        self.workers: dict[tuple[str, Case], Worker] = {}
        self.left_out: dict[tuple[str, Case], str] = {}
        self._stopped = False
        self._running: dict[tuple[str, Case], Worker] = {}
        self._pool = ThreadPoolExecutor(settings.parallel)
        self._futures: list[Future] = [
            self._pool.submit(self._compile, network, case)
            for case in settings.cases
            for network in COMPILED
        ]

    def _compile(self, network: str, case: Case) -> None:
        key = network, case
        worker = self._running[key] = self.settings.start(network)
        try:
            if self._stopped:
                raise WorkerError('was not compiled in time')
            self.settings.build(worker, network, case, True, max(1.0, self.budget.left))
            worker.request('trim', timeout=_LONGEST_REQUEST)
            self.workers[key] = worker
        except WorkerError as error:
            self.left_out[key] = str(error)
            worker.close()
        finally:
            del self._running[key]
        say(f'compiled {network}, {case}: {self.left_out.get(key, "ready")}')

    def stop(self, at_most: float) -> None:
        """Wait until all is compiled, or `at_most` seconds; then end what is not."""
        wait(self._futures, timeout=at_most)
        self._stopped = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in list(self._running.values()):
            worker.kill()
        self._pool.shutdown()

    def take(self, network: str, case: Case) -> Worker:
        """The process of a network, which is the caller's to close from now on.

        One that found no memory beside the others is compiled again, from the compiler's cache.

        Raises:
            WorkerError: If it could not be compiled.
        """
        worker = self.workers.pop((network, case), None)
        if worker is not None:
            return worker
        reason = self.left_out.get((network, case), 'was not compiled in time')
        if 'OutOfMemory' not in reason:
            raise WorkerError(reason)
        worker = self.settings.start(network)
        try:
            self.settings.build(worker, network, case, True, self.settings.at_most(self.budget))
        except WorkerError:
            worker.close()
            raise
        return worker

    def close(self) -> None:
        self.stop(0)
        for worker in self.workers.values():
            worker.close()


class CaseTimings:
    """The measurements of one case. A network that fails is left out, and the others go on."""

    def __init__(self, case: Case, settings: Settings, budget: Budget):
        self.case, self.settings, self.budget = case, settings, budget
        self.measured: dict[str, dict] = {}
        self.left_out: dict[str, str] = {}
        self.waits: dict[str, str] = {}
        self.workers: dict[str, Worker] = {}

    @contextlib.contextmanager
    def _leave_out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except WorkerError as error:
            say(f'{name}: {error}')
            self.left_out.setdefault(name, str(error))
            self.measured.pop(name, None)

    def _seconds(self) -> float:
        return self.settings.at_most(self.budget)

    def add(self, name: str, worker: Worker) -> None:
        """Measure the memory of a network that is built, and whether its step ever waits."""
        with self._leave_out_if_it_fails(name):
            memory = worker.request('memory', timeout=self._seconds())
            self.measured[name] = dict(**memory, seconds=[], passes=[])
            self.workers[name] = worker
        if name in self.measured and name.startswith('ours'):
            try:
                worker.request('check_synchronization', timeout=self._seconds())
                self.waits[name] = 'never'
            except WorkerError as error:
                self.waits[name] = str(error)
        if name in self.measured:
            self._trim(name, worker)

    def _trim(self, name: str, worker: Worker) -> None:
        with self._leave_out_if_it_fails(name):
            worker.request('trim', timeout=self._seconds())

    def _measure(self, name: str, worker: Worker, graph: bool) -> None:
        rounds = self.settings.rounds(self.case)
        answer = worker.request('measure', timeout=self._seconds(), rounds=rounds, graph=graph)
        entry = self.measured[name]
        entry['seconds'] += answer['seconds']
        entry['passes'].append(sorted(answer['seconds'])[rounds // 2])

    def do_pass(self) -> None:
        """Measure every network once: steps, then replays of their CUDA graph.

        Each gives its memory back, or they would not have room beside each other.
        """
        for name, worker in list(self.workers.items()):
            if name not in self.measured:
                continue
            with self._leave_out_if_it_fails(name):
                self._measure(name, worker, graph=False)
            graphed = name + '+graph'
            if name in self.measured and graphed not in self.left_out:
                with self._leave_out_if_it_fails(graphed):
                    memory = worker.request('capture', timeout=self._seconds())
                    self.measured.setdefault(graphed, dict(**memory, seconds=[], passes=[]))
                    self._measure(graphed, worker, graph=True)
            if name in self.measured:
                self._trim(name, worker)

    def result(self) -> dict:
        """The entry of the case in results.json."""
        complete = {name: each for name, each in self.measured.items() if each['seconds']}
        return dict(
            name=str(self.case),
            case=dataclasses.asdict(self.case),
            trimmed=True,
            implementations=complete,
            left_out=self.left_out,
            waits_for_device=self.waits,
            **summarize(complete, None),
        )


class Timings:
    """The timings of all cases; the processes of the networks in eager mode stay for all."""

    def __init__(self, settings: Settings, budget: Budget, compilation: Compilation):
        self.settings, self.budget, self.compilation = settings, budget, compilation
        self.eager: dict[str, Worker] = {}

    def run(self, case: Case) -> dict:
        """Measure one case."""
        timings = CaseTimings(case, self.settings, self.budget)
        compiled: list[Worker] = []
        try:
            self._add_eager(timings)
            for network in COMPILED:
                name = network + '+compile'
                try:
                    compiled.append(self.compilation.take(network, case))
                    timings.add(name, compiled[-1])
                except WorkerError as error:
                    timings.left_out[name] = str(error)
            timings.do_pass()
            for _ in range(1, PASSES):
                # One that is broken off would take the times of the first with it.
                if self.budget.left >= LEAST:
                    timings.do_pass()
        finally:
            for worker in compiled:
                worker.close()
        # A process whose network has failed cannot be trusted with the next case.
        for name in timings.left_out:
            if '+compile' not in name and network_of(name) in self.eager:
                self.eager.pop(network_of(name)).close()
        return timings.result()

    def _add_eager(self, timings: CaseTimings) -> None:
        # All processes at once: their imports take longer than many a step.
        for network in NETWORKS:
            if network not in self.eager:
                self.eager[network] = self.settings.start(network)
        for network in NETWORKS:
            worker, at_most = self.eager[network], self.settings.at_most(self.budget)
            try:
                self.settings.build(worker, network, timings.case, False, at_most)
                timings.add(network, worker)
            except WorkerError as error:
                timings.left_out[network] = str(error)

    def close(self) -> None:
        for worker in self.eager.values():
            worker.close()
