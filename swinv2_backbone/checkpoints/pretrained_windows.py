"""Pretrained window sizes: the window, per stage, that a position bias was trained with.

They set the unit of the bias (:mod:`swinv2_backbone.layers.position_bias`), whatever window the
model runs with now. This module has the setting ``pretrained_window_sizes``, the places where files
record the sizes (metadata of our own files, coordinate tables, names of releases; for config.json
see :mod:`.config_json`), and :func:`reconcile`, which compares the two.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..arguments import ARCHITECTURES, NUM_STAGES, is_int, parse_windows
from ..layers.windows import Pair
from .errors import CheckpointError
from .releases import PRETRAINED_WINDOW_SIZES, find_release

# Key in the `_metadata` of a state dict, and in the header of a safetensors file. It must not
# change: every file written so far has it.
METADATA_KEY = 'pretrained_window_sizes'

# (height, width) in tokens by stage, for the stages that a file records.
PretrainedWindows = dict[int, Pair]


# --- the setting ----------------------------------------------------------------------------------


def parse_pretrained_windows(
    value: int | str | Sequence | None, windows: Sequence[Pair]
) -> tuple[Pair | None, ...]:
    """The setting ``pretrained_window_sizes`` as one entry per stage.

    Args:
        value: An int, a (height, width) pair, one of either per stage, 'auto', or None.
        windows: Attention windows per stage, which None stands for.

    Returns:
        A (height, width) pair per stage; all None for 'auto'.

    Raises:
        TypeError: If an entry is neither an integer nor a pair of integers.
        ValueError: If a side is below 1 or the number of entries fits none of the forms.
    """
    if value is None:
        return tuple(windows)
    if value == 'auto':
        return (None,) * NUM_STAGES
    if isinstance(value, str):
        raise ValueError(
            f"pretrained_window_sizes: got {value!r}, allowed: 'auto', None, an "
            f'integer, a (height, width) pair, or {NUM_STAGES} of either, one per stage'
        )
    parsed = parse_windows('pretrained_window_sizes', value, low=0)
    if any(side == 0 for pair in parsed for side in pair):
        raise ValueError(
            f'pretrained_window_sizes: got {value!r}, allowed: at least 1. The official code reads '
            '0 as "stretch the bias over whatever window is in use", so a change of window changes '
            'the bias. Give the window the checkpoint was trained with '
            f'({describe_released_windows()}), or None to train from scratch.'
        )
    return parsed


def format_pretrained_windows(windows: Sequence[Pair]) -> int | list:
    """Sizes of the first stages, in the shortest form that ``pretrained_window_sizes`` takes."""
    sides = [height if height == width else (height, width) for height, width in windows]
    if len(set(sides)) == 1 and isinstance(sides[0], int):
        return sides[0]
    return sides + sides[-1:] * (NUM_STAGES - len(sides))


def describe_released_windows() -> str:
    """The settings for the published checkpoints, for messages."""
    settings = (
        f'{format_pretrained_windows([(side, side) for side in sides])} for {name}'
        for name, sides in PRETRAINED_WINDOW_SIZES.items()
    )
    return f'{", ".join(settings)}; `python -m swinv2_backbone` lists the releases'


def reconcile(
    configured: Sequence[Pair | None], recorded: Mapping[int, Pair], source: str, evidence: str
) -> list[Pair]:
    """The pretrained window sizes of a backbone: as configured, or as recorded for 'auto'.

    Args:
        configured: What the backbone was built with, per stage; None stands for 'auto'.
        recorded: What is recorded with the checkpoint, by stage; may be empty.
        source: The checkpoint, for messages.
        evidence: Where the sizes are recorded, for messages.

    Raises:
        CheckpointError: If the two differ, or a stage has neither.
    """
    found = [recorded.get(i, window) for i, window in enumerate(configured)]
    result = [window for window in found if window is not None]
    if len(result) < len(found):
        raise CheckpointError(
            f'{source}: records no pretrained window sizes, so '
            "pretrained_window_sizes='auto' cannot be used. Set them: "
            f'{describe_released_windows()}'
        )
    given = [window for window in configured if window is not None]
    if any(window not in (None, found[i]) for i, window in enumerate(configured)):
        result += [recorded[i] for i in sorted(recorded) if i >= len(found)]
        raise CheckpointError(
            f'{source}: its position bias was trained with other windows (source: {evidence}) than '
            f'configured ({format_pretrained_windows(given)}): set '
            f'pretrained_window_sizes={format_pretrained_windows(result)}'
        )
    return result


# --- metadata of our own files --------------------------------------------------------------------


def get_metadata(state: Mapping) -> Mapping[str, Any]:
    """The metadata that torch keeps beside the tensors of a state dict, by module path."""
    return getattr(state, '_metadata', None) or {}


def write_metadata(state: Mapping, windows: Sequence[Pair | None], prefix: str = '') -> None:
    """Record pretrained window sizes in the metadata of a state dict, if all of them are set.

    Args:
        state: An OrderedDict, such as ``state_dict()`` makes; a plain dict has no metadata.
        windows: (height, width) in tokens, one per stage.
        prefix: What precedes the backbone's names in it.
    """
    if windows and None not in windows:
        _record(state, tuple(windows), prefix.rstrip('.'))


def _record(state: Mapping, value: object, module: str) -> None:
    if isinstance(state, OrderedDict):
        metadata = vars(state).setdefault('_metadata', {})
        metadata.setdefault(module, {})[METADATA_KEY] = value


def windows_from_metadata(metadata: Mapping[str, Any], prefix: str = '') -> PretrainedWindows:
    """The pretrained window sizes that metadata records for the backbone under a prefix, or {}.

    Raises:
        CheckpointError: If what is recorded is no list of windows.
    """
    for module in (prefix.rstrip('.'), ''):
        entry = metadata.get(module)
        if isinstance(entry, Mapping) and entry.get(METADATA_KEY) is not None:
            return check_recorded(entry[METADATA_KEY], 'its metadata has ')
    return {}


def reconcile_metadata(
    configured: Sequence[Pair | None], metadata: Mapping[str, Any], model: str
) -> Sequence[Pair | None]:
    """As :func:`reconcile`, where a state dict records sizes; else as configured.

    Args:
        metadata: What the state dict has beside the tensors of the backbone.
        model: The backbone's type, for messages.
    """
    recorded = windows_from_metadata({'': metadata})
    source = f'state dict of a {model}'
    return reconcile(configured, recorded, source, 'its metadata') if recorded else configured


def header_of(windows: Sequence[Pair]) -> dict[str, str]:
    """The entry of a safetensors header that records pretrained window sizes; {} without any."""
    return {METADATA_KEY: json.dumps(windows)} if windows else {}


def copy_header(header: Mapping[str, str], state: Mapping) -> None:
    """Record in the metadata of a state dict what the header of its safetensors file records.

    Raises:
        CheckpointError: If the entry is not JSON.
    """
    if METADATA_KEY in header:
        try:
            _record(state, json.loads(header[METADATA_KEY]), '')
        except json.JSONDecodeError as error:
            raise CheckpointError(
                f'its metadata has {METADATA_KEY}={header[METADATA_KEY]!r}, which is not JSON'
            ) from error


def check_recorded(recorded: object, where: str = '') -> PretrainedWindows:
    """Recorded sizes, checked, by stage.

    Raises:
        CheckpointError: If they are not one (height, width) per stage; `where` begins the message.
    """
    if (
        isinstance(recorded, (list, tuple))
        and 0 < len(recorded) <= NUM_STAGES
        and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in recorded)
        and all(is_int(side) and side > 0 for pair in recorded for side in pair)
    ):
        return {i: (pair[0], pair[1]) for i, pair in enumerate(recorded)}
    raise CheckpointError(
        f'{where}{METADATA_KEY}={recorded!r}, allowed: one (height, width) per stage'
    )


# --- coordinate tables ----------------------------------------------------------------------------


def windows_from_tables(state: Mapping[str, Tensor]) -> PretrainedWindows:
    """The pretrained window sizes that the coordinate tables in a file were computed with.

    An entry is sign(t) log2(1 + |t|) / log2(8) with t = 8 d / (p - 1) for an offset of d tokens and
    the pretrained window size p. The shape of the table gives the largest d, its value p.

    Args:
        state: Tensors under the official names.

    Raises:
        CheckpointError: If a table is malformed.
    """
    windows: PretrainedWindows = {}
    for key, table in state.items():
        match = re.fullmatch(r'layers\.(\d+)\.blocks\.\d+\.attn\.relative_coords_table', key)
        if match is None or int(match[1]) in windows:
            continue
        shape = tuple(table.shape)
        is_table = len(shape) == 4 and (shape[0], shape[3]) == (1, 2) and 0 not in shape
        if not is_table or not table.is_floating_point():
            raise CheckpointError(
                f'{key} is {table.dtype} {shape}, allowed: floating point (1, rows, columns, 2)'
            )
        offsets = [(side - 1) / 2 for side in shape[1:3]]
        if min(offsets) < 1:
            continue  # A window of one token has the one offset 0, whatever the unit.
        largest = table.double().flatten(0, 2).amax(0).tolist()
        units = [8 * d / (8**t - 1) for d, t in zip(offsets, largest, strict=True) if 0 < t < 10]
        if len(units) < 2:
            raise CheckpointError(f'{key} holds no coordinates: its largest are {largest}')
        windows[int(match[1])] = (round(units[0]) + 1, round(units[1]) + 1)
    return windows


def window_size_from_tables(state: Mapping[str, Tensor]) -> Pair | None:
    """The window (height, width) in tokens that the first stage last ran with, or None.

    This is the size of its coordinate table, not the unit of the values in it.
    """
    table = state.get('layers.0.blocks.0.attn.relative_coords_table')
    if table is None or table.ndim != 4:
        return None
    return (table.shape[1] + 1) // 2, (table.shape[2] + 1) // 2


# --- names of releases ----------------------------------------------------------------------------


def windows_from_name(source: str, path: Path, fmt: str, arch: Mapping) -> PretrainedWindows:
    """The pretrained window sizes of the release that an address or a file name names, or {}.

    A file of another format or architecture than the release is not that release.

    Args:
        source: A path, a URL or an address on the hub.
        path: The file, which may have another name.
        fmt: Name of its format.
        arch: ``embed_dims, depths, num_heads`` of its weights.
    """
    release = find_release(source) or find_release(path.name)
    if release and fmt.startswith(release.format) and arch == ARCHITECTURES[release.arch]:
        return dict(enumerate(release.pretrained_window_sizes))
    return {}
