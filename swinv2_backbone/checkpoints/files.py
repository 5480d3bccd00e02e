"""Files of weights: read without running anything in them, and written atomically."""

import contextlib
import hashlib
import os
import pickle
import re
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from ..layers.windows import Pair
from .errors import CheckpointError
from .pretrained_windows import copy_header, header_of, write_metadata

# How torch's safe loader names what it refuses to look up.
_NEEDS_CODE = re.compile(r'GLOBAL ([\w.]+)')
# OpenMMLab and torchvision end file names in the first eight hex digits of the file's sha256.
_HASH_IN_NAME = re.compile(r'-([0-9a-f]{8})\.\w+$')


def read_checkpoint(path: str | Path, sha256: str | None = None) -> Mapping:
    """Read a file onto the CPU, refusing whatever would run code.

    Args:
        path: A file written by torch.save or by safetensors; its first bytes decide which.
        sha256: Hex digits that the file's hash must begin with. If not given, those in its name.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If it is a safetensors file and safetensors is not installed.
        CheckpointError: If it is no checkpoint, is damaged, has another hash, or needs code to be
            unpickled.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        cause = 'it is a directory' if path.is_dir() else 'no such file'
        raise FileNotFoundError(f'checkpoint {path}: {cause}')
    try:
        check_hash(path, sha256)
        content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    except CheckpointError as error:
        raise CheckpointError(f'checkpoint {path}: {error}') from error.__cause__
    except OSError as error:
        raise CheckpointError(f'checkpoint {path}: cannot be read ({error})') from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f'checkpoint {path}: holds a {type(content).__name__}, not a dict of weights'
        )
    return content


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors does: the header's length, then its JSON."""
    with open(path, 'rb') as file:
        start = file.read(9)
    return path.suffix == '.safetensors' or (start[8:] == b'{' and start[6:8] == b'\0\0')


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message goes on to advise the unsafe loader.
        found = _NEEDS_CODE.search(f'{error} {error.__cause__}')
        cause = 'it is not a file written by torch.save, or holds more than tensors and plain data'
        if found:
            cause = f'it holds {found[1]}, which requires code to unpickle'
        raise CheckpointError(f'refused by the safe loader (weights_only=True): {cause}') from error
    except Exception as error:  # A damaged pickle may raise anything.
        raise CheckpointError(
            'damaged or cut short, or no checkpoint at all '
            f'({type(error).__name__}: {_first_line(error)})'
        ) from error


def _read_safetensors(path: Path) -> Mapping:
    require_safetensors(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='pt', device='cpu') as file:
            state = OrderedDict((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118
            header = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(
            f'damaged or cut short, or no safetensors file at all ({_first_line(error)})'
        ) from error
    copy_header(header, state)
    return state


def require_safetensors(path: str | Path) -> None:
    """Raise ImportError, with the command to type, where safetensors is not installed."""
    if find_spec('safetensors') is None:
        raise ImportError(
            f'checkpoint {path}: a safetensors file, but safetensors is not '
            'installed: run `pip install safetensors`'
        )


def _first_line(error: Exception) -> str:
    return str(error).split('\n', 1)[0]


# --- hashes ---------------------------------------------------------------------------------------


def hash_in_name(name: str) -> str | None:
    """The hex digits of its sha256 that a file's name ends in, or None.

    Eight decimal digits do not count: they are a date, or the number of a job or an iteration.
    """
    found = _HASH_IN_NAME.search(name)
    return found[1] if found and not found[1].isdecimal() else None


def check_hash(path: str | Path, sha256: str | None = None, name: str | None = None) -> None:
    """Compare a file's sha256 with the digits given, or else with those in its name.

    Args:
        name: Its name, where that is not the path's.

    Raises:
        CheckpointError: If they differ.
    """
    name = name or Path(path).name
    required = sha256 or hash_in_name(name)
    if required is None:
        return
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(required.lower()):
        shown = digest.hexdigest()[: max(8, len(required))]
        reason = f'sha256={sha256!r} is required' if sha256 else f'its name ends in {required}'
        raise CheckpointError(
            f'its sha256 is {shown}, but {reason}: it is damaged, or another file '
            '(or, if that is not a hash, rename it or give sha256=)'
        )


# --- writing --------------------------------------------------------------------------------------


def write_checkpoint(
    state: Mapping,
    path: str | Path,
    wrapper: str | None = None,
    pretrained_window_sizes: Sequence[Pair] | None = None,
    safetensors: bool = False,
) -> None:
    """Write weights atomically.

    Args:
        wrapper: If given, the key under which a file of torch.save holds them.
        pretrained_window_sizes: (height, width) per stage, recorded beside the weights.
        safetensors: Write safetensors instead of torch's format.

    Raises:
        ImportError: If `safetensors` is True and safetensors is not installed.
        OSError: If it cannot be written.
    """
    state = OrderedDict((key, value.contiguous().clone()) for key, value in state.items())
    windows = pretrained_window_sizes or ()
    with atomic_file(Path(path)) as partial:
        if safetensors:
            require_safetensors(path)
            from safetensors.torch import save_file

            save_file(state, partial, metadata={'format': 'pt', **header_of(windows)})
        else:
            write_metadata(state, windows)
            torch.save({wrapper: state} if wrapper else state, partial)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[str]:
    """The path of a temporary file that replaces `path` if the block ends without an error.

    Its content is on the disk before it has the name: not even a loss of power leaves half a file.
    """
    path = Path(os.path.realpath(path))  # What a link points to, not the link.
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix='.partial')
    os.close(handle)
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)
        _to_disk(partial)
        os.replace(partial, path)
        _to_disk(path.parent)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def _to_disk(path: str | Path) -> None:
    """Have the disk take what was written to a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
