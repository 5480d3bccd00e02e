"""Loading a checkpoint into a backbone: fetch, convert, check, copy, log."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.dist import barrier
from mmengine.logging import print_log
from mmengine.model import PretrainedInit, update_init_info
from torch import Tensor, nn

from ..arguments import NUM_STAGES
from ..compat import safe_mmengine_globals
from .architecture import CONVOLUTION, arch_of, explain_mismatch
from .config_json import read_config_json, windows_from_config
from .download import ALLOWED, fetch, is_remote
from .errors import CheckpointError, list_keys
from .files import read_checkpoint
from .formats import OFFICIAL_BUFFERS
from .pretrained_windows import format_pretrained_windows, reconcile, windows_from_name
from .releases import resolve
from .state_dicts import Converted, adapt_channels, to_backbone


class PretrainedSwinV2:
    """Initialize a backbone from a checkpoint: what ``init_cfg=dict(type='Pretrained')`` becomes.

    mmengine's own initializer of that name accepts a file in which no key matches. This one
    requires every parameter except output norms (a classifier has only the last of them). It
    loads the files of every library in :mod:`.formats`, written by torch.save or safetensors.

    Args:
        checkpoint: A path, an http(s) URL, ``hf://owner/name[@revision][/file]``, or
            ``swinv2://NAME`` of a published one (``python -m swinv2_backbone`` lists them).
        prefix: If given, only keys that start with it are used, without it.
        sha256: If given, at least 8 hex digits that the file's hash must begin with. Digits at the
            end of a file's name, as OpenMMLab and torchvision have them, are always checked.
        map_location: 'cpu', as configs of OpenMMLab say; weights are copied to the parameters'
            device from there.
        adapt_channels: If the backbone has another number of input channels: 'repeat' or 'zero',
            see :func:`.state_dicts.adapt_channels`. None: such a file is refused.
    """

    def __init__(
        self,
        checkpoint: str,
        prefix: str | None = None,
        sha256: str | None = None,
        map_location: str = 'cpu',
        adapt_channels: str | None = None,
    ):
        if not isinstance(checkpoint, (str, Path)) or not str(checkpoint):
            raise TypeError(f'init_cfg: checkpoint: got {checkpoint!r}, allowed: {ALLOWED}')
        if prefix is not None and not isinstance(prefix, str):
            raise TypeError(f'init_cfg: prefix: got {prefix!r}, allowed: a string or None')
        if sha256 is not None and not (
            isinstance(sha256, str) and re.fullmatch('[0-9a-fA-F]{8,64}', sha256)
        ):
            raise ValueError(f'init_cfg: sha256: got {sha256!r}, allowed: 8 to 64 hex digits')
        if adapt_channels not in (None, 'repeat', 'zero'):
            allowed = "'repeat', 'zero' or None"
            raise ValueError(
                f'init_cfg: adapt_channels: got {adapt_channels!r}, allowed: {allowed}'
            )
        if map_location != 'cpu':
            raise ValueError(f"init_cfg: map_location: got {map_location!r}, allowed: 'cpu'")
        self.checkpoint = str(checkpoint)
        self.prefix = prefix
        self.sha256 = sha256
        self.adapt_channels = adapt_channels

    def __call__(self, module: nn.Module) -> None:
        """Load into `module`; after an error it is unchanged.

        Raises:
            FileNotFoundError: If there is no such file.
            ConnectionError: If it cannot be fetched.
            ImportError: If it requires safetensors or huggingface_hub, which is not installed.
            CheckpointError: If the file does not fit.
        """
        converted = open_checkpoint(self.checkpoint, self.prefix, self.sha256)
        if self.adapt_channels:
            channels = module.state_dict()[CONVOLUTION].shape[1]
            original = converted.state.get(CONVOLUTION)
            converted = adapt_channels(converted, channels, self.adapt_channels, self.checkpoint)
            if original is not None and converted.state[CONVOLUTION] is not original:
                print_log(
                    f'{CONVOLUTION}: {original.shape[1]} input channels adapted to {channels} '
                    f"('{self.adapt_channels}')",
                    logger='current',
                )
        load_into(module, converted, self.checkpoint)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'loaded from {self.checkpoint}')


def with_checkpoints_last(configs: Sequence[dict]) -> list[dict]:
    """mmengine's initialization configs, checkpoints last and loaded by PretrainedSwinV2.

    Args:
        configs: Dicts with a 'type', the name of an initializer or its class.
    """
    pretrained = [cfg for cfg in configs if _is_pretrained(cfg['type'])]
    others = [cfg for cfg in configs if not _is_pretrained(cfg['type'])]
    return others + [{**cfg, 'type': PretrainedSwinV2} for cfg in pretrained]


def _is_pretrained(init_type: str | type) -> bool:
    """Whether a type of initializer is mmengine's Pretrained, with or without a scope."""
    name = init_type.rpartition('.')[2] if isinstance(init_type, str) else init_type
    return name in ('Pretrained', 'PretrainedInit', PretrainedInit)


def open_checkpoint(
    checkpoint: str, prefix: str | None = None, sha256: str | None = None
) -> Converted:
    """Fetch, read and convert a checkpoint; arguments and errors as in :class:`PretrainedSwinV2`.

    Returns:
        Its weights under the backbone's names, and the pretrained window sizes that the file, its
        config.json or its name records.
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
    fmt, arch = converted.format, arch_of(converted.state)
    try:
        converted = replace(converted, config=read_config_json(path, fmt, arch))
        if converted.pretrained_window_sizes:
            return converted
        windows, source = windows_from_config(converted.config, fmt, path), 'config.json'
    except CheckpointError as error:
        raise CheckpointError(f'checkpoint {checkpoint}: {error}') from error
    if not windows:
        windows, source = windows_from_name(resolve(checkpoint), path, fmt, arch), 'its name'
    return replace(
        converted, pretrained_window_sizes=windows, window_source=source if windows else ''
    )


def _fetch_once(checkpoint: str, sha256: str | None) -> Path:
    """Fetch in one process of this machine; the others then find the file in the cache."""
    if not is_remote(checkpoint):
        return fetch(checkpoint)
    try:
        if int(os.environ.get('LOCAL_RANK', 0)) == 0:
            print_log(f'fetching {checkpoint}', logger='current')
            fetch(checkpoint, sha256)
    finally:
        barrier()  # The others wait for the file, or for the failure.
    return fetch(checkpoint, sha256)


def load_into(module: nn.Module, converted: Converted, source: str) -> None:
    """Copy converted weights into a backbone and log one line about it.

    Args:
        module: The backbone. Its ``layers`` are the stages, whose ``pretrained_window`` is compared
            with the recorded size or, where it is None ('auto'), set to it.
        converted: The weights under the backbone's names.
        source: Where they came from, for messages.

    Raises:
        CheckpointError: As :func:`check_weights`, or if the pretrained window sizes that are
            recorded differ from the setting. The module is then unchanged.
    """
    expected = module.state_dict()
    new, left_out = check_weights(converted, expected, source)
    recorded = converted.pretrained_window_sizes
    evidence = converted.window_source if recorded else 'the setting; none are recorded'
    stages: list[Any] = list(module.get_submodule('layers').children())
    windows = reconcile(
        [stage.pretrained_window for stage in stages], recorded, f'checkpoint {source}', evidence
    )
    state = {key: value for key, value in converted.state.items() if key not in left_out}
    module.load_state_dict(state, strict=False)
    for stage, window in zip(stages, windows, strict=True):
        stage.pretrained_window = window
    print_log(
        f'{type(module).__name__}: loaded {len(state)} parameters from {source} '
        f'({converted.format} format); newly initialized: {_summarize(new)}; '
        f'dropped: {_summarize(converted.dropped + left_out)}; pretrained window sizes: '
        f'{format_pretrained_windows(windows)} (source: {evidence})',
        logger='current',
        level=logging.INFO,
    )


def check_weights(
    converted: Converted, expected: Mapping[str, Tensor], source: str
) -> tuple[list[str], list[str]]:
    """Compare the names and shapes of converted weights with those of a backbone.

    Args:
        converted: The weights under the backbone's names.
        expected: The backbone's state dict, or its expected parameters as meta tensors.
        source: Where the weights came from, for messages.

    Returns:
        Names of the output norms that the file lacks, and names of parameters in the file that the
        backbone leaves out.

    Raises:
        CheckpointError: If a parameter is missing (except output norms that a file of its format
            may lack), a name does not exist in the backbone, or shapes differ.
    """
    num_stages = 1 + max(int(key.split('.')[1]) for key in expected if key.startswith('layers.'))
    extra = [key for key in converted.state if key not in expected]
    left_out = [key for key in extra if is_left_out(key, num_stages)]
    new = [key for key in expected if key not in converted.state]
    of_format = f'checkpoint {source} ({converted.format} format)'
    cause = explain_mismatch(converted.state, expected)
    missing = [key for key in new if not _may_be_new(key, converted)]
    if missing:
        raise CheckpointError(
            f'{of_format}: the backbone has parameters that the file lacks: '
            f'{list_keys(map(converted.in_file, missing))}. {cause}'
        )
    unexpected = [key for key in extra if key not in left_out]
    if unexpected:
        raise CheckpointError(
            f'{of_format}: the file has parameters that the backbone lacks: '
            f'{list_keys(map(converted.in_file, unexpected))}. {cause}'
        )
    differing = [
        f'{converted.in_file(key)} {tuple(value.shape)} (backbone: {tuple(expected[key].shape)})'
        for key, value in converted.state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if differing:
        raise CheckpointError(f'{of_format}: shapes differ: {list_keys(differing)}. {cause}')
    return new, left_out


def is_output_norm(name: str) -> bool:
    """Whether a parameter belongs to one of the output norms ``norm0`` to ``norm3``."""
    return re.match(r'norm[0-3]\.', name) is not None


def is_left_out(name: str, num_stages: int) -> bool:
    """Whether a parameter belongs to a part that a backbone of fewer stages does not have.

    Args:
        name: A parameter that the backbone does not have.
        num_stages: How many stages it has; the last has no patch merging.
    """
    stage = re.match(r'layers\.(\d+)\.(downsample\.)?', name)
    if stage is None:
        return is_output_norm(name)
    index, last = int(stage[1]), num_stages - 1
    return last < index < NUM_STAGES or (index == last and bool(stage[2]))


def _may_be_new(name: str, converted: Converted) -> bool:
    """Whether the file may lack a parameter: one of an output norm that it lacks altogether."""
    norm = name.partition('.')[0]
    return (
        is_output_norm(name)
        and converted.may_lack(norm)
        and not any(other.startswith(norm + '.') for other in converted.state)
    )


def _summarize(keys: Iterable[str]) -> str:
    """Keys on one line: by module or kind of buffer, with the number of keys of larger ones."""
    counts: Counter[str] = Counter()
    for key in keys:
        parts = key.split('.')
        if parts[-1] in OFFICIAL_BUFFERS:
            counts[f'{parts[-1]} ({{}})'] += 1
        elif parts[0] == 'layers':
            counts['.'.join(parts[:2]) + ' ({})'] += 1
        else:
            counts[parts[0] + ' ({})' if len(parts) > 2 else parts[0]] += 1
    return ', '.join(label.format(count) for label, count in counts.items()) or 'none'
