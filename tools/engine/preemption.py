"""Preemption: on SIGTERM or SIGUSR1 a training saves a checkpoint and ends, to go on later."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from tools.engine.checkpoint_hook import SafeCheckpointHook
from tools.engine.launching import end_communication

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure; try again.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class PreemptionHook(Hook):
    """Ends a training at the end of an iteration, after saving, if a signal has come.

    It is enough that one process of a distributed job gets it. With accumulated gradients it ends
    after an update. In a validation, which the resumed training repeats, it ends after a batch if
    there is one process; several may differ in batches, and go on to the next iteration.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.signal: str | None = None
        self.training = False

    @contextmanager
    def listening(self) -> Iterator['PreemptionHook']:
        """Take the signals while the block runs; until the first iteration they end it at once."""
        before = {number: signal.signal(number, self._take) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        if not self.training:
            self._end('before the first iteration')

    def before_train(self, runner: Runner) -> None:
        self.training = True

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        wanted = torch.tensor(float(self.signal is not None))
        all_reduce(wanted, 'max')
        done = runner.iter + 1
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if wanted and (done % accumulated == 0 or done == runner.max_iters):
            self._save_and_end(runner, done)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.signal and get_world_size() == 1:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # The averages take the weights' place meanwhile.
                    hook._swap_ema_parameters()
            self._save_and_end(runner, runner.iter)

    def _save_and_end(self, runner: Runner, iteration: int) -> None:
        hooks = (hook for hook in runner.hooks if isinstance(hook, SafeCheckpointHook))
        paths = [path for hook in hooks if (path := hook.save_now(runner, iteration))]
        saved = f'{", ".join(paths)} is saved' if paths else 'nothing could be saved'
        self._end(f'after iteration {iteration}; {saved}')

    def _end(self, when: str) -> None:
        """Say so, have slurm put the job back into its queue, and exit."""
        if is_main_process() and os.environ.get('SLURM_PROCID', '0') == '0':
            what = self.signal or 'another process has the signal'
            print(f'train.py: preempted ({what}) {when}. To go on: --resume', file=sys.stderr)
            if job := os.environ.get('SWINV2_REQUEUE'):
                subprocess.run(['scontrol', 'requeue', job], check=False)
        if self.training:  # All processes end together.
            end_communication()
        sys.exit(EXIT_CODE)
