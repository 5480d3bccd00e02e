"""Checks of the files of a data set: a few before a run, and names in the errors of the others."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
from mmengine.dataset import BaseDataset, Compose
from mmengine.logging import print_log
from PIL import Image

from tools.utils.errors import UserError, first_line

NUM_FILES = 16  # Looked at before a run, spread over a data set.
IGNORED = 255  # mmseg's label of pixels without a class.


def plain_datasets(dataset: Any) -> Iterator[BaseDataset]:
    """The datasets inside of RepeatDataset, ConcatDataset and the like, or the dataset itself."""
    if isinstance(dataset, BaseDataset):
        yield dataset
        return
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    for one in inner:
        if one is not None:
            yield from plain_datasets(one)


def check_files(dataset: BaseDataset, scope: str) -> None:
    """Read some images of a data set and, of mmseg, their label maps, as its pipeline does.

    Raises:
        UserError: Naming a file that cannot be read or has another size than its annotations; a
            label map that has other values than classes, or :data:`IGNORED` for all of them.
    """
    load_image = _transform(dataset, 'imdecode_backend', 'color_type')
    load_labels = _transform(dataset, 'reduce_zero_label') if scope == 'mmseg' else None
    num_classes = len(dataset.metainfo.get('classes') or ())
    labels: set[int] = set()
    deep = []
    for index in np.linspace(0, len(dataset) - 1, min(NUM_FILES, len(dataset)), dtype=int):
        info, size = dataset.get_data_info(int(index)), None
        if load_image is not None:
            image = _read(load_image, info, info['img_path'])['img']
            size = image.shape[:2]
            _check_size(info, size)
            deep += _of_16_bits(info['img_path'], image)
        if load_labels is not None:
            labels |= _labels(load_labels, info, size, num_classes)
    if deep:
        stored, read, path = max(deep)
        print_log(
            f"image '{path}' has 16 bits and is read as 8 bits: its largest value, {stored}, "
            f'becomes {read}; convert such images with a scale of your own',
            logger='current',
            level=logging.WARNING,
        )
    if load_labels is not None and num_classes > 1 and IGNORED in labels:
        _check_ignored(dataset, load_labels, labels)


def _transform(dataset: BaseDataset, *attributes: str) -> Any:
    """The first transform of a dataset's pipeline that has some attributes; None without one."""
    for transform in dataset.pipeline.transforms:
        if all(hasattr(transform, name) for name in attributes):
            return transform
    return None


def _read(transform: Any, info: dict, path: str) -> dict:
    try:
        return transform(dict(info))
    except Exception as error:  # Of OpenCV, Pillow, mmcv's assertions.
        text = f'{type(error).__name__}: {first_line(error)}'
        raise UserError(f"'{path}' cannot be read: {text}") from error


def _check_size(info: dict, size: tuple[int, int]) -> None:
    annotated = info.get('height'), info.get('width')
    if None not in annotated and annotated != size:
        raise UserError(
            f"image '{info['img_path']}': {describe_size(size)} as it is read (turned as its EXIF "
            f'orientation says, if it has one), {describe_size(annotated)} in the annotations'
        )


def describe_size(size: tuple[int, int]) -> str:
    """(height, width) as WIDTH x HEIGHT pixels."""
    return f'{size[1]} x {size[0]} pixels'


def _of_16_bits(path: str, image: np.ndarray) -> list[tuple[int, int, str]]:
    """The largest value in a file of 16 bits, and in the image of 8 bits that is read from it."""
    stored = cv2.imread(path, cv2.IMREAD_UNCHANGED) if Path(path).is_file() else None
    if stored is None or stored.dtype != np.uint16 or image.dtype != np.uint8:
        return []
    return [(int(stored.max()), int(image.max()), path)]


def _labels(transform: Any, info: dict, size: tuple | None, num_classes: int) -> set[int]:
    """The values of a label map, checked to be those of classes."""
    path = info['seg_map_path']
    labels = _read(transform, info, path)['gt_seg_map']
    if labels.ndim != 2:
        raise UserError(
            f"label map '{path}' has {labels.shape[-1]} channels, allowed: one, whose values are "
            'class indices (a palette is fine)'
        )
    if size is not None and labels.shape != size:
        raise UserError(
            f"label map '{path}' has {describe_size(labels.shape)}, its image {describe_size(size)}"
        )
    with suppress(OSError), Image.open(path) as stored:
        if stored.mode not in ('1', 'L', 'P') and np.max(stored) > 255:
            raise UserError(f"label map '{path}' has the value {np.max(stored)}, allowed: 0 to 255")
    check_labels(labels, num_classes, path)
    return set(np.unique(labels).tolist())


def check_labels(labels: Any, num_classes: int, path: str) -> None:
    """Refuse values of a label map, an array or tensor, that are no classes and not ignored."""
    wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != IGNORED)]
    if len(wrong):
        raise UserError(
            f"label map '{path}' has the value {int(wrong[0])} (as it is loaded), allowed: 0 to "
            f'{num_classes - 1}, the indices of the {num_classes} classes, and {IGNORED} (ignored)'
        )


def _check_ignored(dataset: BaseDataset, transform: Any, found: set[int]) -> None:
    """Refuse label maps that all have nothing but 0 and ignored pixels, as masks of 0 and 255."""
    for index in range(len(dataset)):
        if not found <= {0, IGNORED}:
            return
        info = dataset.get_data_info(index)
        found |= set(np.unique(_read(transform, info, info['seg_map_path'])['gt_seg_map']).tolist())
    if found <= {0, IGNORED}:
        raise UserError(
            f"all {len(dataset)} label maps, as '{info['seg_map_path']}', have no other value than "
            f'0 and {IGNORED} (as they are loaded), and {IGNORED} is ignored: write class indices, '
            'such as 1 for the second class'
        )


@contextmanager
def explained_data_errors() -> Iterator[None]:
    """Name the files in whatever a pipeline raises, and the data set that turns out empty.

    Raises:
        UserError: If a dataset has no image. mmengine's own message is numpy's, of concatenation.
    """
    plain = Compose.__call__

    def call(self: Compose, data: dict) -> Any:
        files = [data[key] for key in ('img_path', 'seg_map_path') if data.get(key)]
        try:
            return plain(self, data)
        except Exception as error:
            if files and not hasattr(error, '__notes__'):
                error.add_note(f'(while {" and ".join(files)} was read)')
            raise

    try:
        with mock.patch.object(Compose, '__call__', call):
            yield
    except ValueError as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            dataset = frame.f_locals.get('self')
            if frame.f_code.co_name == '_serialize_data' and not dataset.data_list:
                raise UserError(_describe_empty(dataset)) from error
        raise


def _describe_empty(dataset: BaseDataset) -> str:
    places = [dataset.ann_file, *dataset.data_prefix.values()]
    suffix = getattr(dataset, 'img_suffix', None)
    return f'{type(dataset).__name__}: no image in {", ".join(map(repr, filter(None, places)))}' + (
        f" with img_suffix='{suffix}'" if suffix else ' that has annotations and passes filter_cfg'
    )
