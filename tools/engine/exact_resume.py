"""Exact resuming: a training that was killed ends with the weights of one that was not.

mmengine forgets the random states, and its IterBasedTrainLoop reads and discards all the data of
the iterations before; its EpochBasedTrainLoop starts an epoch anew.

Here no random state outlives an iteration, so none has to be saved: what is random in a sample is a
function of the seed, the process and the sample's position, what is random in an iteration one of
the seed and the iteration. A checkpoint has the position that the loop had come to, which is behind
what the workers have read ahead, and the sampler is forwarded to it without reading.

Upstream: https://github.com/open-mmlab/mmengine/issues/1520 (and pull request 1468, of the seed)
"""

import copy
import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Dataset, IterableDataset

KEY = 'exact_resume'


def seed_of(*parts: object) -> int:
    """A seed of 32 bits, a hash of the parts; the same on every machine."""
    text = ' '.join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest())


def set_random_state(seed: int, device: bool = False) -> None:
    """Seed the generators of Python, NumPy and torch.

    Args:
        device: Whether also that of this process's GPU, if it uses one.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # The transforms of OpenMMLab use this one.
    torch.default_generator.manual_seed(seed)
    if device and torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


# --- data -----------------------------------------------------------------------------------------


@dataclass
class Position:
    """How far a loop has come: the pass over the data, and the batches that it has had of it."""

    epoch: int = 0
    batch: int = 0


class ResumableLoader(DataLoader):
    """A DataLoader that begins at any position and seeds every sample by its own.

    Nothing is read before the first batch is requested.

    Args:
        loader: The DataLoader to take the place of; of a dataset with indices, in batches.
        seed: Of the training.
    """

    def __init__(self, loader: DataLoader, seed: int) -> None:
        self.__dict__.update(loader.__dict__)  # Its attributes are read-only.
        self.position = Position()
        self.seed = seed

    def begin(self, epoch: int, batch: int = 0) -> None:
        """Set where the next iterator begins."""
        self.position.epoch, self.position.batch = epoch, batch

    def __iter__(self) -> Iterator:
        for sampler in (self.sampler, getattr(self.batch_sampler, 'sampler', None)):
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(self.position.epoch)
        for batch in super().__iter__():
            self.position.batch += 1
            yield batch

    @property
    def _index_sampler(self) -> '_Batches':
        return _Batches(self.batch_sampler, self.position, self.seed)

    def _get_iterator(self) -> Iterator:
        view = copy.copy(self)  # Hooks find the dataset itself in this loader.
        view.__dict__['dataset'] = _SeededDataset(self.dataset)
        return super(ResumableLoader, view)._get_iterator()


class _Batches:
    """The batches of a sampler from a position on, of pairs: a sample's seed, and its index."""

    def __init__(self, batch_sampler: object, position: Position, seed: int) -> None:
        self.batch_sampler, self.position, self.seed = batch_sampler, position, seed

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[tuple[int, object]]]:
        epoch, first = self.position.epoch, self.position.batch
        where = self.seed, get_rank(), epoch
        set_random_state(seed_of('sampler', *where))  # torch's RandomSampler draws from it.
        for number, batch in enumerate(self.batch_sampler):
            if number >= first:
                yield [(seed_of(*where, number, k), index) for k, index in enumerate(batch)]


class _SeededDataset(Dataset):
    """A dataset that is read by a seed and an index."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, seed_and_index: tuple[int, object]) -> object:
        seed, index = seed_and_index
        set_random_state(seed)
        return self.dataset[index]


def _resumable(runner: Runner, loader: DataLoader | dict) -> DataLoader:
    """The loader of a loop, which resumes if there are positions in its data."""
    different = runner._randomness_cfg.get('diff_rank_seed', False)
    loader = runner.build_dataloader(loader, seed=runner.seed, diff_rank_seed=different)
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return loader
    return ResumableLoader(loader, runner.seed)


# --- loops ----------------------------------------------------------------------------------------


class ResumableEpochLoop(EpochBasedTrainLoop):
    """An EpochBasedTrainLoop that goes on in the middle of an epoch."""

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **kwargs) -> None:
        super().__init__(runner, _resumable(runner, dataloader), **kwargs)

    def run_epoch(self) -> None:
        """Iterate over one epoch, or what is left of it."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        first = 0
        if isinstance(self.dataloader, ResumableLoader):
            if self.dataloader.position.epoch != self._epoch:
                self.dataloader.begin(self._epoch)
            first = self.dataloader.position.batch
        for index, batch in enumerate(self.dataloader, first):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


class _Iterator:
    """The batches of a loader that begins where the training goes on."""

    def __init__(self, batches: Iterator) -> None:
        self.batches = batches

    def __next__(self) -> object:
        return next(self.batches)

    def skip_iter(self, num_iters: int) -> None:
        """Skip nothing: those that were trained on are not among them."""


class ResumableIterLoop(IterBasedTrainLoop):
    """An IterBasedTrainLoop that resumes without reading what it was trained on."""

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **kwargs) -> None:
        super().__init__(runner, _resumable(runner, dataloader), **kwargs)

    def run(self) -> torch.nn.Module:
        """Train."""
        if isinstance(self.dataloader, ResumableLoader):
            # mmengine takes as many from the iterator as there were iterations, and discards them;
            # the maintained fork calls skip_iter instead.
            self.runner.logger.addFilter(lambda r: not str(r.msg).startswith('Advance dataloader'))
            skips = hasattr(self.dataloader_iterator, 'skip_iter')
            discarded = itertools.repeat(None, 0 if skips else self._iter)
            self.dataloader_iterator = _Iterator(itertools.chain(discarded, self._endless()))
        return super().run()

    def _endless(self) -> Iterator:
        loader = self.dataloader
        while True:
            yield from loader
            loader.begin(loader.position.epoch + 1)


_LOOPS = {EpochBasedTrainLoop: ResumableEpochLoop, IterBasedTrainLoop: ResumableIterLoop}


def resumable_loop(loop: dict) -> dict:
    """The config of a training loop with mmengine's own replaced by one that resumes exactly."""
    loop = dict(loop)
    if 'by_epoch' in loop and 'type' not in loop:
        loop['type'] = EpochBasedTrainLoop if loop.pop('by_epoch') else IterBasedTrainLoop
    given = loop.get('type')
    kind = LOOPS.get(given) if isinstance(given, str) else given
    return {**loop, 'type': _LOOPS.get(kind, given)}


# --- checkpoints ----------------------------------------------------------------------------------


class ExactResumeHook(Hook):
    """Seeds every iteration, and keeps the position in the data in the checkpoints."""

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.validated = -1  # The iteration that the last validation came after.

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        set_random_state(seed_of(runner.seed, 'iteration', runner.iter), device=True)

    def before_val_epoch(self, runner: Runner) -> None:
        set_random_state(seed_of(runner.seed, 'validation', runner.iter), device=True)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        loader = runner.train_dataloader
        if isinstance(loader, ResumableLoader):
            validated = self.validated == checkpoint['meta']['iter']
            state = {**asdict(loader.position), **_conditions(loader), 'validated': validated}
            checkpoint[KEY] = state

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self.validated = runner.iter

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        loader = runner.train_dataloader
        if not runner._resume or not isinstance(loader, ResumableLoader):
            return
        if 'meta' not in checkpoint:
            return  # Weights alone: resuming will be refused.
        saved, iters = checkpoint.get(KEY), checkpoint['meta']['iter']
        if saved is None:
            runner.logger.warning(
                'the checkpoint has no position in the data (an older version, or mmengine alone, '
                'saved it): this is not exactly the training that was interrupted'
            )
            if isinstance(runner.train_loop, IterBasedTrainLoop):
                endless = isinstance(loader.sampler, InfiniteSampler)
                loader.begin(*((0, iters) if endless else divmod(iters, len(loader))))
            return
        now = _conditions(loader)
        changes = [
            f'{name} {saved[name]} (now: {now[name]})'
            for name in now
            if saved.get(name) != now[name]
        ]
        if changes:
            runner.logger.warning(
                f'the checkpoint was saved with {", ".join(changes)}: this is not exactly the '
                'training that was interrupted'
            )
        loader.begin(saved['epoch'], saved['batch'])
        if not saved.get('validated', True):
            runner.register_hook(_RepeatValidation(), priority='LOWEST')


class _RepeatValidation(Hook):
    """Repeats the validation before which, or in which, a training was interrupted."""

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop):
            done, end = runner.iter, runner.max_iters
        elif loop.dataloader.position.epoch == runner.epoch:
            return  # In the middle of an epoch.
        else:
            done, end = runner.epoch, runner.max_epochs
        loop._decide_current_val_interval()
        begun = runner.val_loop is not None and done >= loop.val_begin
        if begun and (done % loop.val_interval == 0 or done == end):
            runner.val_loop.run()


def _conditions(loader: ResumableLoader) -> dict[str, int]:
    """What has to stay the same for a position to have the same meaning."""
    size = getattr(loader.batch_sampler, 'batch_size', None)
    return dict(processes=get_world_size(), batch_size=size, images=len(loader.dataset))
