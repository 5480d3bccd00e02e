"""Loading a checkpoint into the backbone: fetch, convert, check, copy, say what was done."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier
from mmengine.logging import print_log
from mmengine.model import update_init_info
from torch import nn

from .checkpoint import (
    GEOMETRY_BUFFERS,
    CheckpointError,
    Converted,
    convert_checkpoint,
    name_keys,
    read_checkpoint,
)
from .download import cached_path, download


class PretrainedSwinV2:
    """Initialise a backbone from a checkpoint; what ``init_cfg=dict(type='Pretrained')`` becomes.

    mmengine's own initialiser of that name takes a file that matches nothing for loaded. This one
    wants every parameter matched but output norms (a classifier has only the last of them).

    Args:
        checkpoint: Path or http(s) URL.
        prefix: If given, only keys that start with it are used, without it.
        map_location: 'cpu', as configs of OpenMMLab say; weights go from there into the parameters.
    """

    def __init__(self, checkpoint: str, prefix: str | None = None, map_location: str = 'cpu'):
        if not isinstance(checkpoint, (str, Path)) or not str(checkpoint):
            raise TypeError(f'init_cfg: checkpoint: got {checkpoint!r}, allowed: a path or an '
                            'http(s) URL')
        self.checkpoint = str(checkpoint)
        if prefix is not None and not isinstance(prefix, str):
            raise TypeError(f'init_cfg: prefix: got {prefix!r}, allowed: a string or None')
        if map_location != 'cpu':
            raise ValueError(f"init_cfg: map_location: got {map_location!r}, allowed: 'cpu'")
        self.prefix = prefix

    def __call__(self, module: nn.Module) -> None:
        """Load into `module`, whole or not at all.

        Raises:
            FileNotFoundError: If there is no such file.
            ConnectionError: If the URL cannot be fetched.
            CheckpointError: If the file does not fit.
        """
        content = read_checkpoint(fetch(self.checkpoint))
        converted = convert_checkpoint(content, self.checkpoint, self.prefix)
        load_converted(module, converted, self.checkpoint)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'loaded from {self.checkpoint}')


def load_converted(module: nn.Module, converted: Converted, source: str) -> None:
    """Copy converted weights into a backbone and log one line about it.

    Args:
        module: The backbone. Its ``is_output_norm(key)`` tells what a file may lack, its
            ``leaves_out(key)`` what it may have too much.
        converted: The weights under the backbone's names.
        source: Where they came from, for messages.

    Raises:
        CheckpointError: If a parameter other than an output norm is missing, a key belongs
            nowhere, shapes differ, values are not finite, or the file was trained with other
            windows than ``pretrained_window_sizes`` says. The module is then unchanged.
    """
    own = module.state_dict()
    left_out = [key for key in converted.state if key not in own and module.leaves_out(key)]
    state = {key: value for key, value in converted.state.items() if key not in left_out}
    new = [key for key in own if key not in state]
    missing = [key for key in new if not module.is_output_norm(key)]
    if missing:
        raise CheckpointError(f'checkpoint {source} ({converted.format} format): the backbone has '
                              f'parameters that the file lacks: {name_keys(missing)}. Is it of '
                              'another architecture?')
    unexpected = [key for key in state if key not in own]
    if unexpected:
        raise CheckpointError(f'checkpoint {source} ({converted.format} format): the file has '
                              f'parameters that the backbone lacks: {name_keys(unexpected)}. Is it '
                              'of another architecture?')
    _check_values(state, own, source)
    _check_windows(module, converted, source)
    module.load_state_dict(state, strict=False)
    print_log(
        f'{type(module).__name__}: loaded {len(state)} parameters from {source} '
        f'({converted.format} format); newly initialised: {_summary(new)}; '
        f'dropped: {_summary(converted.dropped + left_out)}',
        logger='current', level=logging.INFO)


def _check_values(state: dict, own: dict, source: str) -> None:
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise CheckpointError(f'checkpoint {source}: {key} is {kind}, not floating point')
    differing = [f'{key} {tuple(value.shape)} (backbone: {tuple(own[key].shape)})'
                 for key, value in state.items() if value.shape != own[key].shape]
    if differing:
        raise CheckpointError(f'checkpoint {source}: shapes differ: {name_keys(differing)}. Is it '
                              'of another architecture?')
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise CheckpointError(f'checkpoint {source}: NaN or infinity in {name_keys(broken)}')


def _check_windows(module: nn.Module, converted: Converted, source: str) -> None:
    """Refuse the setting that people get wrong: it silently stretches the position bias."""
    said = {i: stage.pretrained_window for i, stage in enumerate(module.layers)}
    trained = {i: window for i, window in converted.windows.items() if i in said}
    if any(said[i] != window for i, window in trained.items()):
        right = [window[0] if window[0] == window[1] else window
                 for _, window in sorted({**said, **converted.windows}.items())]
        raise CheckpointError(
            f'checkpoint {source}: its position bias was trained with other windows than '
            f'pretrained_window_sizes says ({list(said.values())}): set '
            f'pretrained_window_sizes={right}')


def _summary(keys: Iterable[str]) -> str:
    """Keys on one line: modules by name, and how many keys a stage or a kind of buffer has."""
    counts = Counter()
    for key in keys:
        module, _, name = key.rpartition('.')
        if name in GEOMETRY_BUFFERS:
            counts[f'{name} ({{}})'] += 1
        elif key.startswith('layers.'):
            counts['.'.join(key.split('.')[:2]) + ' ({})'] += 1
        else:
            counts[module or name] += 1
    return ', '.join(label.format(count) for label, count in counts.items()) or 'none'


def fetch(checkpoint: str) -> Path:
    """The local path of a checkpoint, downloaded first if it is a URL.

    Downloads go where torch.hub keeps its own, once a machine.

    Raises:
        ConnectionError: If the URL cannot be fetched.
        ValueError: If the scheme is neither http nor https, or the URL names no file.
    """
    url = urlparse(checkpoint)
    if '://' not in checkpoint:
        return Path(checkpoint)
    if url.scheme not in ('http', 'https'):
        raise ValueError(f"init_cfg: checkpoint: got '{checkpoint}', allowed: a path or an "
                         'http(s) URL')
    path = cached_path(checkpoint, Path(torch.hub.get_dir()) / 'checkpoints')
    try:
        if not path.exists() and int(os.environ.get('LOCAL_RANK', 0)) == 0:
            print_log(f'downloading {checkpoint} to {path}', logger='current')
            download(checkpoint, path)
    except OSError as error:  # urllib's errors are among these
        raise ConnectionError(f'checkpoint {checkpoint}: could not be downloaded ({error}). Fetch '
                              f'it by other means and put it at {path}, or give its path.'
                              ) from error
    finally:
        barrier()  # The other processes of this machine wait for the file, or for the failure.
    return path
