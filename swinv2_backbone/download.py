"""Fetching a file by URL: whole or not at all."""

import hashlib
import os
import re
import shutil
import tempfile
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

# OpenMMLab and torchvision end file names in the first eight hex digits of the file's sha256.
_HASH_IN_NAME = re.compile(r'-([0-9a-f]{8})\.\w+$')


def cached_path(url: str, folder: Path) -> Path:
    """Where the file of a URL is kept below `folder`: by the whole URL, not by its last part.

    Raises:
        ValueError: If the URL names no file.
    """
    name = Path(urlparse(url).path).name
    if not name:
        raise ValueError(f"'{url}' names no file")
    return folder / hashlib.sha256(url.encode()).hexdigest()[:8] / name


def download(url: str, path: Path) -> None:
    """Fetch a URL into `path`, which appears only when the file is complete.

    Raises:
        OSError: If it cannot be fetched, is cut short, or does not have the hash in its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix='.partial')
    try:
        with os.fdopen(handle, 'wb') as file, urllib.request.urlopen(url, timeout=60) as response:
            shutil.copyfileobj(response, file, 1 << 20)
            expected = response.headers.get('Content-Length')
        size = os.path.getsize(partial)
        if expected is not None and size != int(expected):
            raise OSError(f'cut short: {size} of {expected} bytes came')
        wanted = _HASH_IN_NAME.search(path.name)
        if wanted and not _sha256(partial).startswith(wanted[1]):
            raise OSError(f'its sha256 is {_sha256(partial)[:8]}..., its name says {wanted[1]}')
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
