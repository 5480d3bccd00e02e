"""All faults of a data set: its annotations, and each of its files, on all cores."""

import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import cv2
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope
from mmengine.utils import ProgressBar

from tools.data.coco_checks import dataset_faults, image_files, read_coco
from tools.data.data_checks import check_categories, reads_coco
from tools.data.faults import Fault
from tools.data.file_checks import Checked, FileChecker
from tools.data.folder_checks import missing_files, missing_label_maps
from tools.data.reading import LastRead, explained_data_errors
from tools.utils.errors import UserError

_CHUNK = 32  # Samples that a process checks at once.


class Checkup(NamedTuple):
    """What the check of a data set found.

    Attributes:
        faults: All of them.
        num_images: The images that were looked at.
    """

    faults: list[Fault]
    num_images: int


def check_data_set(settings: ConfigDict, scope: str, loader: str, workers: int) -> Checkup:
    """Look for all faults of a data set.

    Args:
        settings: The dataset of a config, with its `type`.
        scope: The toolbox of the config.
        loader: The data loader that reads it, for messages.
        workers: Processes that decode files.
    """
    with DefaultScope.overwrite_default_scope(scope):
        dataset = DATASETS.build({**settings, 'lazy_init': True})
    checker = FileChecker(dataset, scope)
    faults = checker.settings()
    if scope == 'mmdet' and reads_coco(type(dataset)):
        found, infos = _annotations(dataset, settings, loader)
    else:
        found, infos = _folders(dataset, checker)
    faults += found
    if any(fault.kind == 'wrong folder' for fault in found):
        infos = []
    missing = set(missing_files(i['img_path'] for i in infos if '://' not in i['img_path']))
    infos = [info for info in infos if info['img_path'] not in missing]
    if checker.load_labels is not None and not checker.settings():
        absent = set(missing_files(i['seg_map_path'] for i in infos))
        infos = [info for info in infos if info['seg_map_path'] not in absent]
    labels: set[int] = set()
    for checked in _checked(checker, infos, workers):
        faults += checked.faults
        labels |= checked.labels
    if labels:
        faults += checker.unused(labels, len(infos), infos[0]['seg_map_path'])
    return Checkup(faults, len(infos) + len(missing))


def _annotations(
    dataset: BaseDataset, settings: ConfigDict, loader: str
) -> tuple[list[Fault], list[dict]]:
    """Faults of a file of COCO's format, and the images that it names."""
    try:
        data = read_coco(dataset.ann_file)
    except UserError as error:
        return [Fault('annotations that cannot be read', str(error))], []
    faults = dataset_faults(dataset, data)
    try:
        check_categories(settings, loader)
    except UserError as error:
        faults.append(Fault('other classes', str(error)))
    return faults, image_files(data, dataset.data_prefix['img'])


def _folders(dataset: BaseDataset, checker: FileChecker) -> tuple[list[Fault], list[dict]]:
    """Faults of how files are named, and the samples of a data set that lists folders."""
    try:
        with explained_data_errors():
            dataset.full_init()
    except (UserError, OSError, ValueError, KeyError, AssertionError) as error:
        return [Fault('data that cannot be read', str(error))], []
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    if checker.load_labels is None:
        return [], infos
    return missing_label_maps(infos, dataset.seg_map_suffix), infos


_checker: FileChecker
_last_read: LastRead


def _start(checker: FileChecker, last_read: LastRead | None) -> None:
    """Prepare a process: it has one core, so OpenCV needs no threads."""
    global _checker, _last_read
    _checker, _last_read = checker, last_read or LastRead()
    cv2.setNumThreads(0)


def _check(infos: list[dict]) -> list[Checked]:
    found = []
    for info in infos:
        _last_read.note(info['img_path'])
        found.append(_checker(info))
    return found


def _checked(checker: FileChecker, infos: list[dict], workers: int) -> Iterator[Checked]:
    """What is found in each sample, in order, while a progress bar is shown.

    Processes are forked where there is fork: this one has neither decoded nor computed anything,
    so it has no threads whose locks a fork would copy, and a fresh interpreter would import torch
    and a toolbox again, which takes longer than to decode hundreds of images.

    Raises:
        UserError: If a process dies.
    """
    if not infos:
        return
    fork = 'fork' in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context('fork' if fork else 'spawn')
    chunks = [infos[start : start + _CHUNK] for start in range(0, len(infos), _CHUNK)]
    last_read = LastRead()
    with ProcessPoolExecutor(
        min(workers, len(chunks)), context, _start, (checker, last_read if fork else None)
    ) as pool:
        bar = ProgressBar(len(infos), file=sys.stderr)
        try:
            for chunk, found in zip(chunks, pool.map(_check, chunks), strict=True):
                yield from found
                bar.update(len(chunk))
        except BrokenProcessPool as error:
            files = ', '.join(map(repr, last_read.all()))
            raise UserError(
                f'a process died while it read one of {files}: is the memory full (fewer '
                '--workers), or does the file crash its decoder?'
            ) from error
        finally:
            print(file=sys.stderr)
