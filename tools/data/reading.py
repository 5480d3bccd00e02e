"""Errors while a run reads its data: named by file, also of a process that died."""

import mmap
import os
import re
import signal
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any
from unittest import mock

from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset, Compose

from tools.data.coco_checks import dataset_faults, describe_unreadable_annotations
from tools.data.decoding import strict_decoding
from tools.data.faults import raise_first
from tools.data.file_checks import describe_unreadable, size_faults
from tools.utils.errors import UserError

_WORKER_DIED = re.compile(r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(.*)', re.DOTALL)
_IN_WORKER = re.compile(r'^Caught UserError in .*UserError: ([^\n]+)', re.DOTALL)
_SLOTS, _BYTES = 512, 2048


class LastRead:
    """The files that each process has begun to read, in memory that its parent shares.

    It is for processes that were forked. Of two whose ids share a slot, the later is known.
    """

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, _SLOTS * _BYTES)

    def note(self, files: str) -> None:
        """Remember the files that this process now reads."""
        entry = f'{os.getpid()}\n{files}'.encode(errors='replace')[: _BYTES - 1] + b'\0'
        start = os.getpid() % _SLOTS * _BYTES
        self.memory[start : start + len(entry)] = entry

    def of(self, pid: int) -> str | None:
        """The files that a process last noted."""
        start = pid % _SLOTS * _BYTES
        entry = self.memory[start : start + _BYTES].partition(b'\0')[0]
        owner, _, files = entry.decode(errors='replace').partition('\n')
        return files if owner == str(pid) else None

    def all(self) -> list[str]:
        """What each process last noted."""
        slots = range(0, _SLOTS * _BYTES, _BYTES)
        entries = (self.memory[start : start + _BYTES].partition(b'\0')[0] for start in slots)
        return [e.decode(errors='replace').partition('\n')[2] for e in entries if e]


@contextmanager
def explained_data_errors(scope: str = '') -> Iterator[None]:
    """Check data as it is read, and name the files in what goes wrong.

    Args:
        scope: The toolbox; the annotations of mmdet's CocoDataset are checked when it has parsed
            them, because to parse COCO's twice would take long.

    Raises:
        UserError: If a file cannot be read, has another size than its annotations, or a process
            died that read it; annotations are wrong; or a dataset has no image.
    """
    last_read = LastRead()
    try:
        with ExitStack() as stack:
            stack.enter_context(strict_decoding())
            stack.enter_context(_named_files(last_read))
            stack.enter_context(_compared_sizes())
            if scope == 'mmdet':
                stack.enter_context(_checked_annotations())
            yield
    except UserError as error:  # torch makes a traceback the message of what a worker raises.
        found = _IN_WORKER.match(str(error))
        if found:
            raise UserError(found[1]) from error
        raise
    except RuntimeError as error:
        # torch hides how a process died behind that it did.
        found = _WORKER_DIED.search(str(error.__cause__)) or _WORKER_DIED.search(str(error))
        if found:
            pids = [int(pid) for pid in found[1].split(',')]
            raise UserError(_describe_death(pids, found[2], last_read)) from error
        raise
    except (ConnectionError, EOFError) as error:  # What it had sent went with it.
        dead = _dead_workers(error)
        if dead:
            how = _how_ended(dead[0].exitcode)
            text = _describe_death([worker.pid for worker in dead], how, last_read)
            raise UserError(text) from error
        raise
    except ValueError as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            dataset = frame.f_locals.get('self')
            if frame.f_code.co_name == '_serialize_data' and not dataset.data_list:
                raise UserError(_describe_empty(dataset)) from error
        raise


@contextmanager
def _named_files(last_read: LastRead) -> Iterator[None]:
    """Name the files in whatever a pipeline raises."""
    plain = Compose.__call__

    def call(self: Compose, data: dict) -> Any:
        files = ' and '.join(data[k] for k in ('img_path', 'seg_map_path') if data.get(k))
        last_read.note(f'while it read {files}')
        try:
            return plain(self, data)
        except UserError:
            raise
        except Exception as error:
            path = _read_when(error, data)
            if path:
                raise UserError(describe_unreadable(path, error)) from error
            if files and not hasattr(error, '__notes__'):
                error.add_note(f'(while {files} was read)')
            raise
        finally:
            last_read.note(f'after it had read {files}')

    with mock.patch.object(Compose, '__call__', call):
        yield


def _read_when(error: BaseException, data: dict) -> str | None:
    """The file that a transform of mmcv's kind was loading when it raised an error."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        loader = frame.f_locals.get('self')
        if hasattr(loader, 'imdecode_backend'):
            of_image = hasattr(loader, 'color_type') or not data.get('seg_map_path')
            return data.get('img_path' if of_image else 'seg_map_path')
    return None


@contextmanager
def _compared_sizes() -> Iterator[None]:
    """Compare the size of each image that is loaded with that in its annotations."""
    plain = LoadImageFromFile.transform

    def transform(self: LoadImageFromFile, results: dict) -> dict | None:
        annotated = {key: results[key] for key in ('height', 'width') if key in results}
        loaded = plain(self, results)
        if loaded is not None and annotated:
            info = dict(annotated, img_path=results['img_path'])
            for fault in size_faults(info, loaded['img'].shape[:2]):
                raise UserError(fault.message)
        return loaded

    with mock.patch.object(LoadImageFromFile, 'transform', transform):
        yield


@contextmanager
def _checked_annotations() -> Iterator[None]:
    """Check the annotations of mmdet's CocoDataset when it has parsed them."""
    from mmdet.datasets import CocoDataset

    plain = CocoDataset.load_data_list

    def load_data_list(self: CocoDataset) -> list[dict]:
        api = self.COCOAPI

        class Checked(api):
            def createIndex(coco) -> None:
                raise_first(dataset_faults(self, coco.dataset))
                super().createIndex()

        def parse(path: str) -> Checked:
            try:
                return Checked(path)
            except (OSError, ValueError, AssertionError) as error:
                text = describe_unreadable_annotations(self.ann_file, error)
                raise UserError(text) from error

        self.COCOAPI = parse
        try:
            return plain(self)
        finally:
            del self.COCOAPI

    with mock.patch.object(CocoDataset, 'load_data_list', load_data_list):
        yield


def _dead_workers(error: BaseException) -> list[BaseProcess]:
    """The processes that died of the data loader that raised an error."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        workers = getattr(frame.f_locals.get('self'), '_workers', None)
        if workers:
            for worker in workers:
                with suppress(RuntimeError):  # torch's, when it learns of the death.
                    worker.join(timeout=1)
            return [worker for worker in workers if not worker.is_alive()]
    return []


def _how_ended(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f'was killed by a signal ({signal.strsignal(-exitcode)})'
    return 'died' if exitcode is None else f'exited unexpectedly with exit code {exitcode}'


def _describe_death(pids: list[int], how: str, last_read: LastRead) -> str:
    """A line about processes of a data loader that died.

    Args:
        how: What torch says of it.
    """
    how = how.partition('.')[0].strip()
    if 'is killed by signal' in how:
        how = f'was killed by a signal ({how.rpartition(":")[2].strip()})'
    doing = '; '.join(filter(None, map(last_read.of, pids))) or 'before it read a file'
    return (
        f'data loader: process {", ".join(map(str, pids))} {how} {doing}: is the memory '
        'full (fewer num_workers), or does that file crash its decoder (num_workers=0 shows where)?'
    )


def _describe_empty(dataset: BaseDataset) -> str:
    places = [dataset.ann_file, *dataset.data_prefix.values()]
    suffix = getattr(dataset, 'img_suffix', None)
    return f'{type(dataset).__name__}: no image in {", ".join(map(repr, filter(None, places)))}' + (
        f" with img_suffix='{suffix}'" if suffix else ' that has annotations and passes filter_cfg'
    )
