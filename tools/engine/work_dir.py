"""The checkpoints of a work dir: the newest, written atomically, by one training at a time."""

import fcntl
import os
import re
import socket
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch
from mmengine.dist import all_reduce, get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader

from swinv2_backbone.checkpoints.files import atomic_file
from swinv2_backbone.compat import safe_mmengine_globals
from tools.engine.checkpoint_hook import safe_checkpoint_hook
from tools.engine.exact_resume import ExactResumeHook, resumable_loop
from tools.utils.errors import UserError

_NAME = re.compile(r'(iter|epoch)_(\d+)\.pth')
# How torchrun, slurm and mpi number the processes of a job.
_RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


def latest_checkpoint(work_dir: str) -> str | None:
    """The newest complete checkpoint of a work dir, by the number in its name.

    Not by the time of its file, which a copy or a download changes; if that disagrees, a line says
    so. A work dir may have both iter_N.pth and epoch_N.pth; then the iterations that the newest of
    each kind records decide. mmengine's own search trusts the file `last_checkpoint`; after a kill
    in the middle of a save there may be a later checkpoint than it names, one that is truncated, or
    nothing in it. It decides only where there is none of these names, as with CheckpointHook's
    `out_dir` and `filename_tmpl`.
    """
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in Path(work_dir).glob('*.pth'):
        name = _NAME.fullmatch(path.name)
        if name and zipfile.is_zipfile(path):
            found.setdefault(name[1], []).append((int(name[2]), path))
    newest = [max(each)[1] for each in found.values()]
    if not newest:
        last = Path(work_dir, 'last_checkpoint')
        path = last.read_text().strip() if last.is_file() else ''
        return path if zipfile.is_zipfile(path) else None
    latest = newest[0] if len(newest) == 1 else max(newest, key=_iterations)
    last = max((path for each in found.values() for _, path in each), key=_written)
    if _written(last) > _written(latest):
        by = 'its number' if len(newest) == 1 else 'the iterations that it records'
        print(
            f"'{work_dir}': {latest.name} is the newest checkpoint by {by}, though "
            f'{last.name} was written later; to take that, name it',
            file=sys.stderr,
        )
    return str(latest)


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns


def _iterations(path: Path) -> int:
    """How many iterations of training a checkpoint records."""
    return _meta(path).get('iter', 0)


def _meta(path: str | Path) -> dict:
    """What a checkpoint records of its training."""
    with safe_mmengine_globals():
        content = torch.load(path, map_location='cpu', mmap=True, weights_only=True)
    return content.get('meta', {})


@contextmanager
def only_training(work_dir: str, launcher: str) -> Iterator[None]:
    """Keep other trainings out of a work dir, where they would overwrite the checkpoints.

    The lock ends with the process, however that ends. It is not inherited by the workers that
    load data, which may live on for some seconds. Whoever has it removes what is left of a
    checkpoint in whose writing a training was killed.

    Args:
        launcher: How the processes of a distributed job are started; the first takes the lock.

    Raises:
        UserError: If another training runs in it.
        OSError: If nothing can be written there.
    """
    rank = next((os.environ[name] for name in _RANKS if name in os.environ), '0')
    if launcher != 'none' and rank != '0':
        yield
        return
    path = Path(work_dir) / '.training'
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a+') as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # as POSIX allows
            file.seek(0)
            raise UserError(
                f"--work-dir: '{work_dir}' is in use by another training ({file.read()}); the two "
                "would overwrite each other's checkpoints"
            ) from error
        except OSError:  # A file system without locks.
            yield
            return
        for partial in path.parent.glob('*.pth*.partial'):
            partial.unlink()
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
        yield


def _start_worker(init: Callable[[int], None] | None, worker_id: int) -> None:
    """Keep signals to the group of the training from its workers, then initialize one.

    Without its workers, a training that is to be preempted could not end its iteration.
    """
    os.setpgrp()
    sys.excepthook = partial(_show_error_of_worker, sys.excepthook)
    if init is not None:
        init(worker_id)


def _show_error_of_worker(show: Callable[..., None], kind: type, error: Exception, trace) -> None:
    """Show an error in a thread of a worker, unless the training was interrupted.

    A training that ends while it takes a batch closes the connection, on whose other end a thread
    of multiprocessing's resource_sharer would print a traceback. Errors of a data set take another
    way: the worker sends them to the training.
    """
    if not issubclass(kind, (ConnectionError, EOFError)):
        show(kind, error, trace)


class AtomicRunner(Runner):
    """A Runner whose checkpoints are complete, or not there, and resume exactly."""

    def set_randomness(self, seed: int | None, diff_rank_seed: bool = False, **kwargs) -> None:
        """As in Runner; a resumed training has the seed of its checkpoint from the beginning.

        mmengine restores it when samplers and loaders have been built with another:
        https://github.com/open-mmlab/mmengine/pull/1468. The config that is kept has the seed, too.
        """
        saved = None
        if self.cfg.get('resume') and Path(str(self.cfg.get('load_from'))).is_file():
            with suppress(Exception):  # Whatever is wrong with the file, loading it says so.
                saved = _meta(self.cfg.load_from).get('seed')
        used = seed if saved is None else saved
        super().set_randomness(seed=used, diff_rank_seed=diff_rank_seed, **kwargs)
        if seed is None:
            used = self.seed - get_rank() * diff_rank_seed
            randomness = dict(seed=used, diff_rank_seed=diff_rank_seed, **kwargs)
            self.cfg.randomness = self._randomness_cfg = randomness

    def register_hook(self, hook: Hook | dict, priority: str | int | None = None) -> None:
        """As in Runner; mmengine's CheckpointHook is replaced by one that loses no checkpoint."""
        if isinstance(hook, dict):
            hook = safe_checkpoint_hook(hook)
        super().register_hook(hook, priority)

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        """As in Runner; signals to the group of the training do not reach the workers."""
        loader = Runner.build_dataloader(dataloader, *args, **kwargs)
        loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)
        return loader

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """As in Runner; mmengine's own loops are replaced by those that resume exactly."""
        self.register_hook(ExactResumeHook())
        return super().build_train_loop(resumable_loop(loop) if isinstance(loop, dict) else loop)

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """As in Runner; called by all processes.

        Raises:
            OSError: In all of them, if the first could not write it.
        """
        error = None
        try:
            if '://' in str(out_dir) or not is_main_process():
                super().save_checkpoint(out_dir, filename, *args, **kwargs)
            else:
                with atomic_file(Path(out_dir) / filename) as partial:
                    super().save_checkpoint(*os.path.split(partial), *args, **kwargs)
        except OSError as caught:
            error = caught
        failed = torch.tensor(float(error is not None))
        all_reduce(failed, 'max')
        if failed:
            raise error or OSError('the first process could not write it')
