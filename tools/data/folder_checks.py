"""Checks of which files a data set has, by listing its folders once."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from tools.data.faults import Fault


def file_names(folder: str) -> set[str]:
    """The names of the files in a folder, and of the links to files; empty if there is none."""
    names = set()
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # A link to itself.
                if entry.is_file():
                    names.add(entry.name)
    return names


def missing_files(paths: Iterable[str]) -> Iterator[str]:
    """Those of some local paths that are no files."""
    folders: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = file_names(folder)
        if name not in folders[folder]:
            yield path


def describe_missing(path: str) -> str:
    """Why a path is no file."""
    try:
        os.stat(path)
    except OSError as error:
        return error.strerror
    return 'it is no file'


def missing_images(paths: list[str], source: str) -> list[Fault]:
    """A fault for each image that is missing, or one for the folder if all are.

    Args:
        paths: Of the images; those on a server are left out.
        source: Who names them, for messages.
    """
    paths = [path for path in paths if '://' not in path]
    missing = list(missing_files(paths))
    if len(missing) == len(paths) > 1:
        folder, _ = Counter(os.path.dirname(path) for path in paths).most_common(1)[0]
        text = (
            f"no image of {source} is in '{folder}' ('{missing[0]}': "
            f'{describe_missing(missing[0])}): set data_root and data_prefix'
        )
        return [Fault('wrong folder', text)]
    return [
        Fault(
            'missing images',
            f"image '{path}' of {source} cannot be read ({describe_missing(path)}): restore it, "
            'or take it out there',
        )
        for path in missing
    ]


def missing_label_maps(infos: list[dict], suffix: str) -> list[Fault]:
    """A fault for each image whose label map is missing, and for label maps without image.

    Args:
        infos: Of the samples of mmseg, with `img_path` and `seg_map_path`.
        suffix: Of the label maps.
    """
    pairs = {
        info['seg_map_path']: info['img_path']
        for info in infos
        if info.get('seg_map_path') and '://' not in info['seg_map_path']
    }
    missing = list(missing_files(pairs))
    unused = [
        str(path)
        for folder in sorted({os.path.dirname(path) for path in pairs})
        for path in (Path(folder, name) for name in sorted(file_names(folder)))
        if path.name.endswith(suffix) and str(path) not in pairs
    ]
    hint = f"; '{unused[0]}' belongs to no image: are the names equal?" if unused else ''
    faults = [
        Fault(
            'missing label maps',
            f"label map '{path}' of the image '{pairs[path]}' cannot be read "
            f'({describe_missing(path)}): add it, or take the image out{hint}',
        )
        for path in missing
    ]
    for path in unused:
        text = f"label map '{path}' belongs to no image (with img_suffix) and is not used"
        faults.append(Fault('label maps without image', text, is_error=False))
    return faults
