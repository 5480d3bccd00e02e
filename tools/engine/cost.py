"""The cost of a test: seconds per image and peak memory."""

import time

from mmengine.dist import all_reduce, is_distributed
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn, tensor

from tools.engine.runner import bare_model
from tools.utils.memory import PeakMemory, wait_for

SECONDS, MEGABYTES = 's/image', 'peak MB'


class CostHook(Hook):
    """Measures the time of a model's forward in a test, post-processing included, and its memory.

    The first batch is not timed if there are more, because it also starts threads and fills caches.

    Attributes:
        cost: After a test, seconds per image (of one process) and peak megabytes.
    """

    def before_test(self, runner: Runner) -> None:
        self.device = next(runner.model.parameters()).device.type
        self.cost: dict[str, float] = {}
        self._batches: list[tuple[float, int]] = []
        self._seconds = 0.0
        model = bare_model(runner.model)
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end),
        ]
        try:
            self._memory = PeakMemory(self.device)
        except OSError:  # Without /proc the column is left out.
            self._memory = None

    def _begin(self, model: nn.Module, inputs: tuple) -> None:
        wait_for(self.device)
        self._started = time.perf_counter()

    def _end(self, model: nn.Module, inputs: tuple, output: object) -> None:
        wait_for(self.device)
        self._seconds += time.perf_counter() - self._started

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: list | None = None,
    ) -> None:
        # Test-time augmentation runs several forwards per batch.
        self._batches.append((self._seconds, len(outputs)))
        self._seconds = 0.0

    def after_test(self, runner: Runner) -> None:
        for handle in self._handles:
            handle.remove()
        timed = self._batches[1:] or self._batches
        seconds, images = (float(sum(column)) for column in zip(*timed, strict=True))
        taken, method = self._memory.taken() if self._memory else (0, '')
        if is_distributed():
            sums = tensor([seconds, images], device=next(runner.model.parameters()).device)
            largest = tensor([float(taken)], device=sums.device)
            all_reduce(sums)
            all_reduce(largest, 'max')
            (seconds, images), taken = sums.tolist(), largest.item()
        self.cost = {SECONDS: seconds / images}
        if method in ('clear_refs', 'max_memory_allocated'):  # Else it covers earlier tests, too.
            self.cost[MEGABYTES] = taken / 1e6
