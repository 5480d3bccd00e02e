"""Checks of the data of a run, before it and in every batch."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset, InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from tools.data.file_checks import check_files, check_labels, describe_label_size
from tools.utils.errors import UserError

_HEADS = ('decode_head', 'auxiliary_head', 'bbox_head', 'mask_head')


def plain_datasets(dataset: Any) -> Iterator[BaseDataset]:
    """The datasets inside of RepeatDataset, ConcatDataset and the like, or the dataset itself."""
    if isinstance(dataset, BaseDataset):
        yield dataset
        return
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    for one in inner:
        if one is not None:
            yield from plain_datasets(one)


class DataHook(Hook):
    """Refuses data and settings that end in errors that hide the cause, or in wrong results.

    Some files of each data set are read before a run. To read all would take too long, so label
    maps are checked again when they come in a batch, and their size when they first come.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.num_classes = 0

    def before_train(self, runner: Runner) -> None:
        check_batch_norm(runner.model.train(), runner.train_dataloader, get_world_size())
        if runner.val_loop is not None:
            self._check(runner, runner.val_dataloader)
        self._check(runner, runner.train_dataloader)

    def before_test(self, runner: Runner) -> None:
        self._check(runner, runner.test_dataloader)

    def _check(self, runner: Runner, loader: DataLoader) -> None:
        for dataset in plain_datasets(loader.dataset):
            classes = dataset.metainfo.get('classes') or ()
            # Of panoptic data, whose heads of boxes and masks predict things alone.
            things = dataset.metainfo.get('thing_classes') or classes
            exact = runner.cfg.default_scope == 'mmdet'
            check_num_classes(runner.cfg.model, len(things), exact)
            check_files(dataset, runner.cfg.default_scope)
            # (All have those of the model's heads.)
            self.num_classes = len(classes) * (runner.cfg.default_scope == 'mmseg')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        for sample, image in self._label_maps(data_batch):
            self._check_size(sample, tuple(image.shape[-2:]))

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        for sample, _ in self._label_maps(data_batch):
            self._check_size(sample, None)

    before_test_iter = before_val_iter

    def _label_maps(self, data_batch: dict) -> Iterator[tuple[BaseDataElement, Tensor]]:
        """The samples of a batch that have a label map, whose values are checked, and images."""
        samples = data_batch['data_samples'] if self.num_classes else ()
        for sample, image in zip(samples, data_batch['inputs'], strict=False):
            if isinstance(sample, BaseDataElement) and 'gt_sem_seg' in sample:
                check_labels(sample.gt_sem_seg.data, self.num_classes, _path(sample))
                yield sample, image

    def _check_size(self, sample: BaseDataElement, size: tuple[int, int] | None) -> None:
        """Compare the label map with its image, and the first time also in the files.

        Args:
            sample: Of a batch.
            size: Height and width of the image in the batch, if the label map must have them.
        """
        path, labels = _path(sample), tuple(sample.gt_sem_seg.shape[-2:])
        if size is not None and labels != size:
            _refuse_size(path, labels, size)
        # A pipeline packs these two by default, and need not.
        if path not in self.seen and {'seg_map_path', 'ori_shape'} <= set(sample.all_keys()):
            self.seen.add(path)
            with suppress(OSError), Image.open(path) as stored:
                if stored.size[::-1] != tuple(sample.ori_shape):
                    _refuse_size(path, stored.size[::-1], sample.ori_shape)


def _path(sample: BaseDataElement) -> str:
    """The path of a sample's label map, or what it is called if its pipeline packs no path."""
    return sample.get('seg_map_path') or 'of a batch'


def _refuse_size(path: str, labels: tuple[int, int], image: tuple[int, int]) -> None:
    raise UserError(describe_label_size(path, labels, image))


def check_num_classes(model: ConfigDict, num_classes: int, exact: bool = False) -> None:
    """Compare the `num_classes` of the heads in a model's config with those of a dataset.

    Args:
        exact: Whether more classes than those of the dataset are refused, too, in a roi_head:
            mmdet's metrics look up a prediction's class among these, and fail after a training.
            (In GroundingDINO's head, 256 is the length of a text.)

    Raises:
        UserError: If a head has fewer: labels would be out of its range. With `exact`, also more.
    """
    for name, head in _heads(model):
        given = head.get('num_classes')
        if num_classes and given is not None and given != num_classes:
            message = f'{name}.num_classes: got {given}; the data set has {num_classes} classes'
            if given < num_classes or (exact and '.roi_head.' in name):
                raise UserError(message)
            print_log(message, logger='current', level=logging.WARNING)


def _heads(node: object, prefix: str = 'model') -> Iterator[tuple[str, dict]]:
    """Name and config of the heads in a model's config that predict the classes of a dataset."""
    if isinstance(node, (list, tuple)):
        for index, one in enumerate(node):
            yield from _heads(one, f'{prefix}.{index}')
    elif isinstance(node, dict):
        if any(part in _HEADS for part in prefix.split('.')[-2:]):
            yield prefix, node
        for key, value in node.items():
            yield from _heads(value, f'{prefix}.{key}')


def check_batch_norm(model: nn.Module, loader: DataLoader, num_processes: int) -> None:
    """Refuse a batch of one image for batch norms that see one value of it per channel.

    These follow a pooling to 1 x 1, as in the pyramid pooling of UperNet. Several images have a
    variance, and so has one image per process, if norms share statistics (SyncBN).

    Args:
        model: The model in training mode; norms in eval mode use their running statistics.
        loader: The training data.
        num_processes: Processes of the training.

    Raises:
        UserError: Naming the first such norm, and what to set.
    """
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None)
    if size is None:  # Batches of a sampler of the user's, which may be of any size.
        return
    endless = loader.batch_size is None or isinstance(loader.sampler, InfiniteSampler)
    last = size if loader.drop_last or endless else len(loader.sampler) % size or size
    if min(size, last) > 1:
        return
    for name, norm in _norms_after_pooling(model):
        if norm.training and not (isinstance(norm, nn.SyncBatchNorm) and num_processes > 1):
            which = 'batch_size is 1' if size == 1 else 'the last batch of an epoch has 1 image'
            cure = 'batch_size=2' if size == 1 else 'drop_last=True'
            raise UserError(
                f'train_dataloader: {which}, and batch norm has no statistics of one value, which '
                f'is what {name} sees after pooling to 1 x 1: set train_dataloader.{cure}, or '
                "another norm in the heads, as norm_cfg=dict(type='GN', num_groups=32)"
            )


def _norms_after_pooling(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of the batch norms that follow a pooling to 1 x 1 in a sequence."""
    pools = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    for prefix, sequence in model.named_modules():
        if isinstance(sequence, nn.Sequential):
            pooled = False
            for name, child in sequence.named_children():
                for inner, module in child.named_modules(prefix=f'{prefix}.{name}'):
                    if pooled and isinstance(module, _BatchNorm):
                        yield inner, module
                pooled |= isinstance(child, pools) and child.output_size in (1, (1, 1))
