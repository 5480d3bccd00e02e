"""Loading a checkpoint into the backbone: fetch, convert, check, copy, say what was done."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mmengine.dist import barrier
from mmengine.logging import print_log
from mmengine.model import update_init_info
from torch import nn

from ..compat import safe_mmengine_globals
from .convert import Converted, arch_of, describe_arch, name_keys, to_backbone
from .download import ALLOWED, fetch, is_remote
from .errors import CheckpointError
from .files import read_checkpoint
from .formats import OFFICIAL_BUFFERS
from .pretrained_windows import agree, as_setting, config_beside, windows_beside
from .releases import resolve

# Their shapes tell in_channels and patch_size, and mlp_ratio.
_CONVOLUTION, _HIDDEN = 'patch_embed.proj.weight', 'layers.0.blocks.0.mlp.fc1.weight'


class PretrainedSwinV2:
    """Initialize a backbone from a checkpoint; what ``init_cfg=dict(type='Pretrained')`` becomes.

    mmengine's own initializer of that name takes a file that matches nothing for loaded. This one
    wants every parameter matched but output norms (a classifier has only the last of them). It
    takes the files of every library that has SwinV2 (see :mod:`.key_maps`), by torch.save or
    safetensors.

    Args:
        checkpoint: A path, an http(s) URL, ``hf://owner/name[@revision][/file]``, or
            ``swinv2://NAME`` of a known release (``python -m swinv2_backbone`` shows them).
        prefix: If given, only keys that start with it are used, without it.
        sha256: If given, at least 8 hex digits that the file's hash must begin with. Digits at the
            end of a file's name, as OpenMMLab and torchvision have them, are checked anyhow.
        map_location: 'cpu', as configs of OpenMMLab say; weights go from there into the parameters.
    """

    def __init__(
        self,
        checkpoint: str,
        prefix: str | None = None,
        sha256: str | None = None,
        map_location: str = 'cpu',
    ):
        if not isinstance(checkpoint, (str, Path)) or not str(checkpoint):
            raise TypeError(f'init_cfg: checkpoint: got {checkpoint!r}, allowed: {ALLOWED}')
        if prefix is not None and not isinstance(prefix, str):
            raise TypeError(f'init_cfg: prefix: got {prefix!r}, allowed: a string or None')
        if sha256 is not None and not (
            isinstance(sha256, str) and re.fullmatch('[0-9a-fA-F]{8,64}', sha256)
        ):
            raise ValueError(f'init_cfg: sha256: got {sha256!r}, allowed: 8 to 64 hex digits')
        if map_location != 'cpu':
            raise ValueError(f"init_cfg: map_location: got {map_location!r}, allowed: 'cpu'")
        self.checkpoint = str(checkpoint)
        self.prefix = prefix
        self.sha256 = sha256

    def __call__(self, module: nn.Module) -> None:
        """Load into `module`, whole or not at all.

        Raises:
            FileNotFoundError: If there is no such file.
            ConnectionError: If it cannot be fetched.
            ImportError: If it takes safetensors or huggingface_hub, and that is not installed.
            CheckpointError: If the file does not fit.
        """
        converted = open_checkpoint(self.checkpoint, self.prefix, self.sha256)
        load_into(module, converted, self.checkpoint)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'loaded from {self.checkpoint}')


def open_checkpoint(
    checkpoint: str, prefix: str | None = None, sha256: str | None = None
) -> Converted:
    """Fetch, read and convert a checkpoint; arguments and errors as in :class:`PretrainedSwinV2`.

    Returns:
        Its weights under the backbone's names, with the windows that the file, its config.json or
        its name tells.
    """
    path = _fetch_once(checkpoint, sha256)
    try:
        with safe_mmengine_globals():
            content = read_checkpoint(path, sha256)
    except CheckpointError as error:
        if not is_remote(checkpoint):
            raise
        raise CheckpointError(
            f'{error}. It came from {checkpoint}; delete it to fetch it anew'
        ) from error
    converted = to_backbone(content, checkpoint, prefix)
    try:
        about = converted.format, arch_of(converted.state)
        converted = replace(converted, config=config_beside(path, *about))
        if converted.windows:
            return converted
        windows, told_by = windows_beside(path, resolve(checkpoint), *about, converted.config)
        return replace(converted, windows=windows, told_by=told_by)
    except CheckpointError as error:
        raise CheckpointError(f'checkpoint {checkpoint}: {error}') from error


def _fetch_once(checkpoint: str, sha256: str | None) -> Path:
    """Fetched by one process of this machine; the others find it then."""
    if not is_remote(checkpoint):
        return fetch(checkpoint)
    try:
        if int(os.environ.get('LOCAL_RANK', 0)) == 0:
            print_log(f'fetching {checkpoint}', logger='current')
            fetch(checkpoint, sha256)
    finally:
        barrier()  # They wait for the file, or for the failure.
    return fetch(checkpoint, sha256)


def load_into(module: nn.Module, converted: Converted, source: str) -> None:
    """Copy converted weights into a backbone and log one line about it.

    Args:
        module: The backbone. Its ``is_output_norm(key)`` tells what a file may lack, its
            ``leaves_out(key)`` what it may have too much; its stages' pretrained windows are held
            against the file's and, where they are None ('auto'), taken from it.
        converted: The weights under the backbone's names.
        source: Where they came from, for messages.

    Raises:
        CheckpointError: If a parameter is missing (but for output norms that a file of its format
            may lack), a key belongs nowhere, shapes differ, or the file was trained with other
            windows than ``pretrained_window_sizes`` says. The module is then unchanged.
    """
    own = module.state_dict()
    left_out = [key for key in converted.state if key not in own and module.leaves_out(key)]
    state = {key: value for key, value in converted.state.items() if key not in left_out}
    new = [key for key in own if key not in state]
    of_format = f'checkpoint {source} ({converted.format} format)'
    missing = [key for key in new if not _may_be_new(key, module, converted)]
    if missing:
        raise CheckpointError(
            f'{of_format}: the backbone has parameters that the file lacks: '
            f'{name_keys(map(converted.in_file, missing))}. '
            f'{_compare_archs(converted, own)}'
        )
    unexpected = [key for key in state if key not in own]
    if unexpected:
        raise CheckpointError(
            f'{of_format}: the file has parameters that the backbone lacks: '
            f'{name_keys(map(converted.in_file, unexpected))}. '
            f'{_compare_archs(converted, own)}'
        )
    differing = [
        f'{converted.in_file(key)} {tuple(value.shape)} (backbone: {tuple(own[key].shape)})'
        for key, value in state.items()
        if value.shape != own[key].shape
    ]
    if differing:
        raise CheckpointError(
            f'{of_format}: shapes differ: {name_keys(differing)}. {_compare_archs(converted, own)}'
        )
    told_by = f'told by {converted.told_by}' if converted.windows else 'as set, the file tells none'
    windows = agree(
        [stage.pretrained_window for stage in module.layers],
        converted.windows,
        f'checkpoint {source}',
        told_by,
    )
    module.load_state_dict(state, strict=False)
    for stage, window in zip(module.layers, windows, strict=True):
        stage.pretrained_window = window
    print_log(
        f'{type(module).__name__}: loaded {len(state)} parameters from {source} '
        f'({converted.format} format); newly initialized: {_summary(new)}; '
        f'dropped: {_summary(converted.dropped + left_out)}; pretrained windows: '
        f'{as_setting(windows)} ({told_by})',
        logger='current',
        level=logging.INFO,
    )


def _may_be_new(key: str, module: nn.Module, converted: Converted) -> bool:
    """Whether the file may lack a parameter: one of an output norm that it lacks altogether."""
    norm = key.partition('.')[0]
    return (
        module.is_output_norm(key)
        and converted.may_lack(norm)
        and not any(other.startswith(norm + '.') for other in converted.state)
    )


def _compare_archs(converted: Converted, own: dict) -> str:
    """The likely cause of keys or shapes that do not fit."""
    for key, sides, argument in (
        (_CONVOLUTION, slice(1, 2), 'in_channels'),
        (_CONVOLUTION, slice(2, 4), 'patch_size'),
        (_HIDDEN, slice(0, 2), 'mlp_ratio'),
    ):
        theirs, ours = (
            tuple(state[key].shape) if key in state else () for state in (converted.state, own)
        )
        if (
            len(theirs) == len(ours)
            and theirs[sides] != ours[sides]
            and (key != _HIDDEN or theirs[1] == ours[1])
        ):
            return f'The file was made with another {argument}.'
    theirs, ours = arch_of(converted.state), arch_of(own)
    stages = [i for i, depth in enumerate(ours['depths']) if depth]
    if theirs.get('embed_dims') == ours['embed_dims'] and all(
        theirs[key][i] == ours[key][i] for key in ('depths', 'num_heads') for i in stages
    ):
        return f'Both are {describe_arch(converted.state)}: the file is damaged, or was changed.'
    return f'The file holds {describe_arch(converted.state)}, the backbone is {describe_arch(own)}.'


def _summary(keys: Iterable[str]) -> str:
    """Keys on one line: modules by name, and how many keys a larger one or a kind of buffer has."""
    counts = Counter()
    for key in keys:
        parts = key.split('.')
        if parts[-1] in OFFICIAL_BUFFERS:
            counts[f'{parts[-1]} ({{}})'] += 1
        elif parts[0] == 'layers':
            counts['.'.join(parts[:2]) + ' ({})'] += 1
        else:
            counts[parts[0] + ' ({})' if len(parts) > 2 else parts[0]] += 1
    return ', '.join(label.format(count) for label, count in counts.items()) or 'none'
