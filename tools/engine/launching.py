"""Distributed jobs: their start where there is no accelerator, and their end when one is lost."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from unittest import mock

import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import get_rank, get_world_size, init_dist, is_distributed

from tools.utils.errors import UserError, first_line

# What each launcher sets; without it, nothing was launched.
_VARIABLES = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}


def check_launcher(launcher: str) -> None:
    """Refuse a launcher that did not start this process.

    Raises:
        UserError: Naming the variable that it would have set.
    """
    variable = _VARIABLES.get(launcher)
    if variable and variable not in os.environ and not is_distributed():
        raise UserError(
            f'--launcher {launcher}: {variable} is not set, so no such launcher started this '
            'process; see tools/dist_train.sh and tools/slurm_train.sh'
        )


def init_without_accelerator(launcher: str, dist_cfg: dict) -> None:
    """Start torch.distributed on CPUs, with gloo; with an accelerator, leave it to mmengine.

    mmengine's function selects a GPU before anything else, which fails where there is none.

    Args:
        dist_cfg: As in a config: arguments of ``init_process_group``, `timeout` in seconds.
    """
    if get_device() != 'cpu' or is_distributed():
        return
    with mock.patch('torch.cuda.set_device'):
        init_dist(launcher, **{**dist_cfg, 'backend': 'gloo'})


def end_communication() -> None:
    """Destroy the process groups of a distributed job whose work is done.

    Otherwise a thread of gloo may free its last tensor after the interpreter has ended, which
    aborts the process: https://github.com/pytorch/pytorch/issues/190489. Not for after an error:
    it would wait for operations whose other processes hang. Then each process is rank 0 of one.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


# --- the loss of a process ------------------------------------------------------------------------

_INTERVAL = 1.0  # seconds between two signs of life of a process
_PATIENCE = 5.0  # seconds without one after which a process counts as lost


@contextmanager
def lost_processes_named() -> Iterator[None]:
    """End a distributed job that has lost a process with an error that says which.

    The backends say which connection broke or which operation timed out, and no rank
    (``monitored_barrier`` names a process that hangs, and none that was killed). So each process
    signals in the job's store that it lives, from a thread, and after a failure of the
    communication the others look who does not.

    Raises:
        UserError: Naming the ranks that do not respond.
    """
    if not is_distributed() or get_world_size() == 1:
        yield
        return
    ended = threading.Event()
    args = _connect(), get_rank(), ended
    thread = threading.Thread(target=_signal_life, args=args, daemon=True)
    thread.start()
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and 'gloo' not in str(error):
            raise
        lost = _lost_ranks()
        if not lost:
            raise
        raise UserError(
            f'rank {get_rank()}: lost rank {", ".join(map(str, lost))} of {get_world_size()}, '
            f'which was killed, ended or hangs: {first_line(error)}'
        ) from error
    finally:
        ended.set()
        thread.join(_INTERVAL)  # It may wait for a store whose process hangs.


def _connect() -> dist.TCPStore:
    timeout = timedelta(seconds=_PATIENCE)
    address, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    return dist.TCPStore(address, port, is_master=False, timeout=timeout)


def _key(rank: int) -> str:
    return f'swinv2_backbone/alive/{rank}'


def _signal_life(store: dist.TCPStore, rank: int, ended: threading.Event) -> None:
    with suppress(RuntimeError):  # Without the store the communication fails, too.
        while not ended.is_set():
            store.set(_key(rank), str(time.time()))
            ended.wait(_INTERVAL)


def _lost_ranks() -> list[int]:
    """The ranks that give no sign of life, looked for at most three times `_PATIENCE`.

    Rank 0 if the store does not respond, which is in its process, or in that of its torchrun.
    """
    silent: list[int] = []
    answered = threading.Event()

    def look() -> None:
        with suppress(RuntimeError):
            store, keys = _connect(), [_key(rank) for rank in range(get_world_size())]
            before = _read(store, keys)
            time.sleep(_PATIENCE)
            pairs = enumerate(zip(before, _read(store, keys), strict=True))
            silent.extend(rank for rank, (old, new) in pairs if old == new)
            answered.set()

    threading.Thread(target=look, daemon=True).start()
    return silent if answered.wait(3 * _PATIENCE) else [0]


def _read(store: dist.TCPStore, keys: list[str]) -> list[bytes | None]:
    return [store.get(key) if store.check([key]) else None for key in keys]
