"""Checks of data sets before they are read: the classes of a config and those of annotations."""

import json
import mmap
import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import ConfigDict

from tools.data.coco_checks import read_coco
from tools.utils.errors import UserError

_LISTED = 20  # Names in a message.


def local_path(dataset: ConfigDict, part: str) -> Path | None:
    """A file or folder below the data_root of a dataset; None if mmengine reads it remotely."""
    root = dataset.get('data_root') or ''
    return Path(root, part) if f'{root}{part}' and '://' not in f'{root}{part}' else None


def check_categories(dataset: ConfigDict, loader: str) -> None:
    """Refuse classes of a config of mmdet that are not the categories of its COCO annotations.

    mmdet leaves out objects of other categories and numbers those that it keeps in the file's
    order. So a class that the file lacks shifts the others, if any are left.

    Args:
        dataset: The config of the dataset.
        loader: The data loader that reads them, for messages.

    Raises:
        UserError: Showing both lists.
    """
    classes = _classes_of(dataset)
    ann_file = local_path(dataset, dataset.get('ann_file') or '')
    if classes is None or ann_file is None or not dataset.get('ann_file'):
        return
    categories = coco_categories(ann_file)
    both = (
        f"the config's classes are {_listed(classes)}, the categories of '{ann_file}' "
        f'{_listed(categories)}'
    )
    missing = [name for name in classes if name not in categories]
    if missing:
        raise UserError(f'{loader}: {both}: the file lacks {_listed(missing)}; set metainfo')
    if [name for name in categories if name in classes] != classes:
        raise UserError(
            f'{loader}: {both}: list each once and in the order of the file, in metainfo'
        )
    ignored = [name for name in categories if name not in classes]
    if ignored:
        print(
            f'{loader}: objects of {_listed(ignored)} are ignored: categories of '
            f"'{ann_file}', but no classes of the config",
            file=sys.stderr,
        )


def reads_coco(kind: object) -> bool:
    """Whether a class of datasets reads its annotations as mmdet's CocoDataset does."""
    from mmdet.datasets import CocoDataset

    if not isinstance(kind, type) or not issubclass(kind, CocoDataset):
        return False
    return kind.load_data_list is CocoDataset.load_data_list


def _classes_of(dataset: ConfigDict) -> list[str] | None:
    """The classes of a dataset that mmdet's CocoDataset reads; None for another."""
    from mmdet.registry import DATASETS

    kind = dataset.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if not reads_coco(kind):
        return None
    classes = kind._load_metainfo(dataset.get('metainfo')).get('classes')
    if isinstance(classes, str):
        raise UserError(
            f"metainfo: classes: got '{classes}', allowed: a sequence of names as ('{classes}',), "
            'or a text file with one name per line'
        )
    return None if classes is None else list(classes)


def coco_categories(path: Path) -> list[str]:
    """The names of the categories in a file of COCO's format.

    A file of many images is not parsed: the list is looked for, and found if there is one place.

    Raises:
        UserError: If there is no such list.
    """
    key = b'"categories"'
    try:
        with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data.find(key)
            if start < 0 or data.find(key, start + 1) >= 0:
                raise ValueError('no such list, or several')
            text = data[start + len(key) : start + 2**24].decode()
            entries = json.JSONDecoder().raw_decode(text.lstrip(' \t\r\n:'))[0]
    except ValueError:  # Of mmap for an empty file, of json, of a character that is cut.
        content = read_coco(path)
        entries = content.get('categories') if isinstance(content, dict) else None
    try:
        return [entry['name'] for entry in entries]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"'{path}': no annotations in COCO's format (JSON with a list `categories` of dicts "
            f'with `id` and `name`): {type(error).__name__}: {error}'
        ) from error


def _listed(names: Sequence[str]) -> str:
    shown = ', '.join(f"'{name}'" for name in names[:_LISTED])
    return f'{shown}, ... ({len(names)})' if len(names) > _LISTED else shown or 'none'
