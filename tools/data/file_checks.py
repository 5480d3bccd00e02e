"""Checks of the images and label maps of a data set, as its pipeline reads them."""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmengine.dataset import BaseDataset
from PIL import Image

from tools.data.decoding import header, strict_decoding, suffixes_of
from tools.data.faults import Fault, raise_first
from tools.data.folder_checks import missing_label_maps
from tools.utils.errors import UserError, first_line

NUM_FILES = 16  # Looked at before a run, spread over a data set.
IGNORED = 255  # mmseg's label of pixels without a class.
_EXIF_ORIENTATION = 0x0112


class Checked(NamedTuple):
    """What a check of one sample found: faults, and the values of its label map."""

    faults: list[Fault]
    labels: set[int]


class FileChecker:
    """Reads the image of a sample and, of mmseg, its label map, and finds what is wrong.

    It has what it needs of a dataset, but not its data, to be sent to other processes.
    """

    def __init__(self, dataset: BaseDataset, scope: str) -> None:
        self.load_image = _transform(dataset, 'imdecode_backend', 'color_type')
        self.load_labels = _transform(dataset, 'reduce_zero_label') if scope == 'mmseg' else None
        self.classes = list(dataset.metainfo.get('classes') or ())
        self.reduce_zero_label = getattr(dataset, 'reduce_zero_label', None)

    def settings(self) -> list[Fault]:
        """Faults of the config alone."""
        loaded = getattr(self.load_labels, 'reduce_zero_label', None)
        if loaded is None or loaded == self.reduce_zero_label:
            return []
        text = (
            f'reduce_zero_label is {self.reduce_zero_label} in the dataset and {loaded} in '
            'LoadAnnotations of its pipeline: set it in the dataset alone'
        )
        return [Fault('reduce_zero_label', text)]

    def __call__(self, info: dict) -> Checked:
        """Check a sample of a dataset's `get_data_info`."""
        faults: list[Fault] = []
        labels: set[int] = set()
        size = None
        if self.load_image is not None:
            try:
                loaded = _read(self.load_image, info, info['img_path'])
            except UserError as error:
                faults.append(Fault('images that cannot be read', str(error)))
            else:
                if loaded is not None:
                    size = loaded['img'].shape[:2]
                    faults += size_faults(info, size)
                    faults += _format_faults(info['img_path'], loaded['img'])
        if 'gt_label' in info and self.classes:
            faults += _class_faults(info, len(self.classes))
        if self.load_labels is not None:
            try:
                labels = self.read_labels(info, size)
            except UserError as error:
                faults.append(Fault('label maps that do not fit', str(error)))
        return Checked(faults, labels)

    def read_labels(self, info: dict, size: tuple | None = None) -> set[int]:
        """The values of a label map, as it is loaded.

        Raises:
            UserError: If it cannot be read or has values that are no class.
        """
        return _labels(self.load_labels, info, size, len(self.classes))

    def unused(self, labels: set[int], num_files: int, example: str) -> list[Fault]:
        """Faults of all label maps together.

        Args:
            labels: The values of all.
            num_files: Their number.
            example: The path of one of them.
        """
        if len(self.classes) < 2 or not labels:
            return []
        hint = ''
        if self.reduce_zero_label:
            hint = ' (reduce_zero_label=True makes 0 ignored and 1 the first class)'
        if IGNORED in labels and labels <= {0, IGNORED}:
            text = (
                f"all {num_files} label maps, as '{example}', have no other value than 0 and "
                f'{IGNORED} (as they are loaded), and {IGNORED} is ignored: write class indices, '
                f'such as 1 for the second class{hint}'
            )
            return [Fault('masks of 0 and 255', text)]
        return [
            Fault(
                'classes without a pixel',
                f"class {index} '{name}' is in none of the {num_files} label maps, as "
                f"'{example}'{hint}",
                is_error=False,
            )
            for index, name in enumerate(self.classes)
            if index not in labels
        ]


def check_files(dataset: BaseDataset, scope: str) -> None:
    """Read some images of a data set and, of mmseg, their label maps, as its pipeline does.

    Raises:
        UserError: Naming a file that is missing, cannot be read or has another size than its
            annotations; a label map that has other values than classes, or :data:`IGNORED` for
            all of them.
    """
    checker = FileChecker(dataset, scope)
    faults = checker.settings()
    if checker.load_labels is not None:
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        faults += missing_label_maps(infos, dataset.seg_map_suffix)
    raise_first(faults)
    faults, labels = [], set()
    for index in np.linspace(0, len(dataset) - 1, min(NUM_FILES, len(dataset)), dtype=int):
        checked = checker(dataset.get_data_info(int(index)))
        faults += checked.faults
        labels |= checked.labels
    raise_first(faults)
    if IGNORED in labels and len(checker.classes) > 1:  # Perhaps the others have more values.
        for index in range(len(dataset)):
            if not labels <= {0, IGNORED}:
                break
            labels |= checker.read_labels(dataset.get_data_info(index))
    if labels:
        example = dataset.get_data_info(0)['seg_map_path']
        unused = checker.unused(labels, len(dataset), example)
        raise_first(fault for fault in unused if fault.is_error)


def _transform(dataset: BaseDataset, *attributes: str) -> Any:
    """The first transform of a dataset's pipeline that has some attributes; None without one."""
    for transform in dataset.pipeline.transforms:
        if all(hasattr(transform, name) for name in attributes):
            return transform
    return None


def _read(transform: Any, info: dict, path: str) -> dict | None:
    """What a transform that reads a file returns; None if it leaves out bad files."""
    try:
        with strict_decoding():
            return transform({**info, 'seg_fields': []})
    except UserError:  # Of a check while it is loaded.
        raise
    except Exception as error:  # Of OpenCV, Pillow, mmcv's assertions.
        raise UserError(describe_unreadable(path, error)) from error


def describe_unreadable(path: str, error: BaseException) -> str:
    """A line about a file that cannot be read."""
    text = getattr(error, 'strerror', None) or f'{type(error).__name__}: {first_line(error)}'
    return f"'{path}' cannot be read: {text}: restore it, or take it out"


def size_faults(info: dict, size: tuple[int, int]) -> list[Fault]:
    """A fault if an image has another (height, width) than its annotations say."""
    annotated = info.get('height'), info.get('width')
    if None in annotated or annotated == size:
        return []
    path, turned = info['img_path'], ''
    with header(path) as image, suppress(Exception):
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        if orientation > 4 and annotated == size[::-1]:
            turned = (
                f' (turned as its EXIF orientation, {orientation}, says; '
                "LoadImageFromFile(color_type='color_ignore_orientation') reads it as it is stored)"
            )
    text = (
        f"image '{path}': {describe_size(size)} as it is read{turned}, {describe_size(annotated)} "
        'in the annotations: write there what it has, and check its boxes'
    )
    return [Fault('images of another size', text)]


def describe_size(size: tuple[int, int]) -> str:
    """(height, width) as WIDTH x HEIGHT pixels."""
    return f'{size[1]} x {size[0]} pixels'


def _format_faults(path: str, image: np.ndarray) -> list[Fault]:
    """What is unusual in the format of an image that could be read."""
    with header(path) as stored:
        if stored is None:
            return []
        kind, mode, suffixes = stored.format, stored.mode, suffixes_of(stored)
    faults = []
    suffix = Path(path).suffix.lower()
    if suffix not in suffixes:
        text = f"image '{path}' is a {kind}, not what its name says"
        if kind == 'GIF':
            text += ', which most versions of OpenCV cannot read: convert it'
            faults.append(Fault('GIFs of another name', text))
        else:
            faults.append(Fault('files of another format', text, is_error=False))
    if mode == 'CMYK':
        text = f"image '{path}' is CMYK, whose colors are only roughly converted: convert it to RGB"
        faults.append(Fault('CMYK images', text, is_error=False))
    if kind != 'JPEG' and image.dtype == np.uint8:
        faults += _depth_faults(path, image)
    return faults


def _depth_faults(path: str, image: np.ndarray) -> list[Fault]:
    """A warning for a file of 16 bits, with its largest value and what is read of it."""
    with open(path, 'rb') as file:
        start = file.read(25)
    if start.startswith(b'\x89PNG\r\n\x1a\n') and start[24] != 16:
        return []
    stored = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype != np.uint16:
        return []
    text = (
        f"image '{path}' has 16 bits and is read as 8 bits: its largest value, {stored.max()}, "
        f'becomes {image.max()}; convert such images with a scale of your own'
    )
    return [Fault('images of 16 bits', text, is_error=False)]


def _class_faults(info: dict, num_classes: int) -> list[Fault]:
    """A fault of a sample of mmpretrain whose label is no class."""
    wrong = [label for label in np.atleast_1d(info['gt_label']) if not 0 <= label < num_classes]
    if not wrong:
        return []
    text = f"image '{info['img_path']}' has the class {wrong[0]}, allowed: 0 to {num_classes - 1}"
    return [Fault('classes out of range', f'{text}: mend the annotations')]


def _labels(transform: Any, info: dict, size: tuple | None, num_classes: int) -> set[int]:
    """The values of a label map, checked to be those of classes."""
    path = info['seg_map_path']
    labels = _read(transform, info, path)['gt_seg_map']
    if labels.ndim != 2:
        with header(path) as stored:
            palette = stored is not None and stored.mode == 'P'
        hint = "set LoadAnnotations(imdecode_backend='pillow')" if palette else 'convert it'
        raise UserError(
            f"label map '{path}' has {labels.shape[-1]} channels, allowed: one, whose values are "
            f'class indices (a palette is fine): {hint}'
        )
    if size is not None and labels.shape != size:
        raise UserError(describe_label_size(path, labels.shape, size))
    with suppress(OSError), Image.open(path) as stored:
        if stored.mode not in ('1', 'L', 'P') and np.max(stored) > 255:
            raise UserError(
                f"label map '{path}' has the value {np.max(stored)}, allowed: 0 to 255: write "
                'class indices of 8 bits'
            )
    hint = '' if transform.reduce_zero_label else '; if 0 is no class, set reduce_zero_label=True'
    check_labels(labels, num_classes, path, hint)
    return set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())


def describe_label_size(path: str, labels: tuple[int, ...], image: tuple[int, ...]) -> str:
    """A line about a label map whose (height, width) is not its image's."""
    return (
        f"label map '{path}' has {describe_size(labels)}, its image {describe_size(image)}: is it "
        'that of another image, or enlarged?'
    )


def check_labels(labels: Any, num_classes: int, path: str, hint: str = '') -> None:
    """Refuse values of a label map, an array or tensor, that are no classes and not ignored.

    Args:
        hint: Added to the message if the largest is one beyond the last class.
    """
    wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != IGNORED)]
    if len(wrong):
        raise UserError(
            f"label map '{path}' has the value {int(wrong[0])} (as it is loaded), allowed: 0 to "
            f'{num_classes - 1}, the indices of the {num_classes} classes, and {IGNORED} (ignored)'
            f'{hint if wrong.max() == num_classes else ""}'
        )
