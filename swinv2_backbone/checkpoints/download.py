"""Where a checkpoint is on this machine, downloaded atomically first if it is elsewhere."""

import contextlib
import hashlib
import os
import shutil
import urllib.request
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse

import torch

from .errors import CheckpointError
from .files import atomic_file, check_hash
from .releases import HUB_SCHEME, SCHEME, resolve

ALLOWED = f'a path, an http(s) URL, {HUB_SCHEME}owner/name[@revision][/file], or {SCHEME}NAME'
# How transformers and timm name their files on the hub, the newer name first.
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')


def is_remote(checkpoint: str) -> bool:
    """Whether a checkpoint has to be fetched."""
    return '://' in checkpoint


def fetch(checkpoint: str, sha256: str | None = None) -> Path:
    """The local path of a checkpoint, downloaded first where it is an address.

    Downloads are kept in the cache of torch.hub, files of the hub in that of huggingface_hub.

    Args:
        checkpoint: A path, an http(s) URL, an address on the hub, or swinv2://NAME of a release.
        sha256: Hex digits that the hash of a download must begin with.

    Raises:
        ConnectionError: If it cannot be fetched.
        CheckpointError: If its hash differs.
        ImportError: If it is on the hub and huggingface_hub is not installed.
        ValueError: If it has none of these forms.
    """
    address = resolve(checkpoint)
    if not is_remote(address):
        return Path(address)
    if address.startswith(HUB_SCHEME):
        return _fetch_from_hub(address)
    if urlparse(address).scheme not in ('http', 'https'):
        raise ValueError(f"init_cfg: checkpoint: got '{checkpoint}', allowed: {ALLOWED}")
    path = cached_path(address, Path(torch.hub.get_dir()) / 'checkpoints')
    try:
        if not path.exists():
            download(address, path, sha256)
    except CheckpointError as error:
        raise CheckpointError(f'checkpoint {checkpoint}: {error}. Nothing was kept') from error
    except OSError as error:  # urllib's errors are among these
        raise ConnectionError(
            f'checkpoint {checkpoint}: could not be downloaded ({error}). Fetch '
            f'it by other means and put it at {path}, or give its path.'
        ) from error
    return path


def cached_path(url: str, folder: Path) -> Path:
    """Where the file of a URL is kept below `folder`: by the whole URL, not by its last part.

    Raises:
        ValueError: If the URL does not end in a file name.
    """
    name = Path(urlparse(url).path).name
    if not name:
        raise ValueError(f"init_cfg: checkpoint: got '{url}', allowed: a URL with a file name")
    return folder / hashlib.sha256(url.encode()).hexdigest()[:8] / name


def download(url: str, path: Path, sha256: str | None = None) -> None:
    """Fetch a URL into `path`, which appears only when the file is complete and its hash right.

    (``torch.hub.download_url_to_file`` neither notices a download that is cut short nor gives up
    on a server that stops answering.)

    Raises:
        OSError: If it cannot be fetched, or is cut short.
        CheckpointError: If its hash is not `sha256`, or else the one in its name.
    """
    with atomic_file(path) as partial:
        with open(partial, 'wb') as file, urllib.request.urlopen(url, timeout=60) as response:
            shutil.copyfileobj(response, file, 1 << 20)
            expected = response.headers.get('Content-Length')
        size = os.path.getsize(partial)
        if expected is not None and size != int(expected):
            raise OSError(f'cut short: {size} of {expected} bytes arrived')
        check_hash(partial, sha256, path.name)


def _fetch_from_hub(address: str) -> Path:
    """A file of the hub, with its config.json, which records the window sizes, beside it."""
    if find_spec('huggingface_hub') is None:
        raise ImportError(
            f'checkpoint {address}: huggingface_hub is not installed: run '
            '`pip install huggingface_hub safetensors`'
        )
    owner, _, rest = address.removeprefix(HUB_SCHEME).partition('/')
    repository, _, file = rest.partition('/')
    name, _, revision = repository.partition('@')
    if not owner or not name:
        raise ValueError(f"init_cfg: checkpoint: got '{address}', allowed: {ALLOWED}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    get = partial(hf_hub_download, f'{owner}/{name}', revision=revision or None)
    reasons, reachable = [], True
    for candidate in [file] if file else HUB_FILES:
        try:
            path = get(candidate, local_files_only=not reachable)
        except (EntryNotFoundError, HFValidationError, OSError) as error:
            # Neither there nor in the cache: no use in waiting for the hub again.
            reachable = reachable and not isinstance(error, LocalEntryNotFoundError)
            lines = [line for line in str(error).splitlines() if line.strip()]
            reasons.append(f'{candidate}: {" ".join(lines[:2])}')
            continue
        with contextlib.suppress(EntryNotFoundError, OSError):
            get(candidate[: candidate.rfind('/') + 1] + 'config.json')
        return Path(path)
    raise ConnectionError(
        f'checkpoint {address}: could not be fetched from the hub ({"; ".join(reasons)})'
    )
