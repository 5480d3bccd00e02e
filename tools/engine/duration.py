"""How long a training and a validation will take, measured from their first batches."""

import time
from datetime import timedelta

from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner


class DurationHook(Hook):
    """Logs once how long a training, or its epochs, will take, and once how long a validation.

    Args:
        batches: How many batches are measured. One before them is not: it starts threads and
            workers, and fills caches.
    """

    def __init__(self, batches: int = 5) -> None:
        self.batches = batches
        self._train, self._val = _Stopwatch(batches), _Stopwatch(batches)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        seconds = self._train.tick()
        left = runner.max_iters - runner.iter - 1
        if seconds is None or not left:
            return
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            what, iterations = f'the {left} iterations that are left take', left
        else:
            iterations = len(runner.train_dataloader)
            what = f'an epoch of {iterations} iterations takes'
        runner.logger.info(
            f'{seconds:.3g} s per iteration: {what} {_clock(seconds * iterations)}, validation '
            'aside'
        )

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: list | None = None,
    ) -> None:
        seconds, batches = self._val.tick(), len(runner.val_dataloader)
        if seconds is not None and batch_idx + 1 < batches:
            runner.logger.info(
                f'{seconds:.3g} s per batch: a validation of {batches} batches takes '
                f'{_clock(seconds * batches)}'
            )

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        # What lies between two batches is then more than a batch.
        self._train.restart()
        self._val.restart()


class _Stopwatch:
    """The seconds of a batch: a mean over several, given once."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.restart()

    def restart(self) -> None:
        self._ticks = -1

    def tick(self) -> float | None:
        """Note the end of a batch; returns the mean when it is known, and None otherwise."""
        if self.batches == 0:
            return None
        self._ticks += 1
        if self._ticks == 0:
            self._started = time.perf_counter()
        if self._ticks < self.batches:
            return None
        seconds = (time.perf_counter() - self._started) / self.batches
        self.batches = 0  # Once is enough.
        return seconds


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=max(1, round(seconds))))
