"""Checkpoint files: read them safely, and turn what is in them into the backbone's own names.

Dict in, dict out; nothing here knows the model. The backbone's parameters carry the official
repository's names, so for that format only the wrapping, the classifier and the final norm
need attention. A further format is one more function in :data:`_FORMATS`.
"""

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .windows import Pair

StateDict = dict[str, Tensor]

# Geometry that the official model keeps among its weights; ours is computed from sizes.
GEOMETRY_BUFFERS = ('relative_coords_table', 'relative_position_index', 'attn_mask')
_WRAPPERS = ('model', 'state_dict')
_NAMED_KEYS = 10


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the cause."""


@dataclass(frozen=True)
class Converted:
    """A state dict in the backbone's names.

    Attributes:
        format: Name of the format it came in.
        state: Parameters under the backbone's names.
        dropped: Keys of the file that a backbone has no use for (classifier, geometry).
        windows: For each stage of which the file tells it, the (height, width) in tokens that its
            position bias was trained with.
    """

    format: str
    state: StateDict
    dropped: list[str] = field(default_factory=list)
    windows: dict[int, Pair] = field(default_factory=dict)


def read_checkpoint(path: str | Path) -> Mapping:
    """Unpickle a file onto the CPU, refusing whatever would run code.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is no checkpoint, is damaged, or needs code to be unpickled.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = 'it is a directory' if path.is_dir() else 'no such file'
        raise FileNotFoundError(f'checkpoint {path}: {what}')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split('\n', 1)[0]
        raise CheckpointError(
            f'checkpoint {path}: refused by the safe loader (weights_only=True): it is not a file '
            f'written by torch.save, or it holds more than tensors and plain data. {reason}'
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).split('\n', 1)[0]
        raise CheckpointError(
            f'checkpoint {path}: damaged or cut short, or no checkpoint at all ({reason})'
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f'checkpoint {path}: holds a {type(content).__name__}, '
                              'not a dict of weights')
    return content


def convert_checkpoint(content: Mapping, source: str, prefix: str | None = None) -> Converted:
    """Find out the format of a checkpoint and convert it to the backbone's names.

    Args:
        content: What the file holds: a state dict, bare or wrapped in 'model' or 'state_dict'.
        source: Where it came from, for messages.
        prefix: If given, only keys that start with it are used, without it.

    Raises:
        CheckpointError: If no format fits.
    """
    state = _unwrap(content)
    others = [key for key in state if not isinstance(key, str)]
    if others:
        raise CheckpointError(f'checkpoint {source}: has keys that are no names: '
                              f'{name_keys(others)}')
    if prefix:
        prefix = prefix if prefix.endswith('.') else prefix + '.'
        state = strip_prefix(state, prefix)
        if not state:
            raise CheckpointError(f"checkpoint {source}: no key starts with prefix='{prefix}'; "
                                  f'it has {name_keys(_unwrap(content))}')
    for convert in _FORMATS:
        try:
            converted = convert(state)
        except CheckpointError as error:
            raise CheckpointError(f'checkpoint {source}: {error}') from None
        if converted is not None:
            return converted
    raise CheckpointError(f'checkpoint {source}: {_likely_cause(state)} '
                          f'It has {name_keys(state)}.')


def name_keys(keys: Mapping | list[str]) -> str:
    """Up to ten keys for a message, and how many there are."""
    keys = [str(key) for key in keys]
    more = f', ... ({len(keys)} in all)' if len(keys) > _NAMED_KEYS else ''
    return ', '.join(keys[:_NAMED_KEYS]) + more if keys else 'no keys'


def strip_prefix(state: Mapping, prefix: str) -> StateDict:
    """The entries whose key starts with `prefix`, without it."""
    return {key[len(prefix):]: value for key, value in state.items() if key.startswith(prefix)}


def _unwrap(content: Mapping) -> Mapping:
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            return content[wrapper]
    return content


def _from_official(state: Mapping) -> Converted | None:
    """microsoft/Swin-Transformer's SwinTransformerV2, a classifier."""
    if not _has_native_names(state):
        return None
    kept, dropped = {}, []
    for key, value in state.items():
        if key.startswith('head.') or key.endswith(GEOMETRY_BUFFERS):
            dropped.append(key)
        else:
            # The classifier's one norm follows its last stage.
            kept[f'norm3{key[4:]}' if key.startswith('norm.') else key] = value
    return Converted('official', kept, dropped, _trained_windows(state))


def _trained_windows(state: Mapping) -> dict[int, Pair]:
    """The windows that the official tables of coordinates were computed for.

    An entry is sign(t) log2(1 + |t|) / log2(8) with t = 8 d / (p - 1) for an offset of d tokens, so
    the largest offset, which the table's size gives, tells p.
    """
    windows = {}
    for key, table in state.items():
        match = re.fullmatch(r'layers\.(\d+)\.blocks\.0\.attn\.relative_coords_table', key)
        if match is None:
            continue
        if not isinstance(table, Tensor) or table.ndim != 4 or table.shape[-1] != 2:
            what = tuple(table.shape) if isinstance(table, Tensor) else type(table).__name__
            raise CheckpointError(f'{key} is {what}, not a tensor (1, rows, columns, 2)')
        offsets = [(side - 1) / 2 for side in table.shape[1:3]]
        if min(offsets) < 1:
            continue  # A window of one token has one offset, 0, in any unit.
        largest = table.double().flatten(0, 2).amax(0).tolist()
        units = [8 * d / (8**t - 1) for d, t in zip(offsets, largest, strict=True) if 0 < t < 10]
        if len(units) < 2:
            raise CheckpointError(f'{key} holds no coordinates: its largest are {largest}')
        windows[int(match[1])] = (round(units[0]) + 1, round(units[1]) + 1)
    return windows


def _from_own(state: Mapping) -> Converted | None:
    """A model of ours: the backbone alone, or inside a detector or segmentor."""
    inner = strip_prefix(state, 'backbone.')
    dropped = [key for key in state if not key.startswith('backbone.')] if inner else []
    inner = inner or dict(state)
    if not _has_native_names(inner) or not any(
            key.startswith(('norm0.', 'norm1.', 'norm2.', 'norm3.')) for key in inner):
        return None
    return Converted('swinv2_backbone', inner, dropped)


def _has_native_names(state: Mapping) -> bool:
    return 'patch_embed.proj.weight' in state and any(
        key.startswith('layers.') and key.endswith('.attn.cpb_mlp.0.weight') for key in state)


# In order: the first that recognises the keys converts them.
_FORMATS: tuple[Callable[[Mapping], Converted | None], ...] = (_from_own, _from_official)


def _likely_cause(state: Mapping) -> str:
    if any(str(key).endswith('relative_position_bias_table') for key in state):
        return ('this is a Swin Transformer V1 file (relative_position_bias_table); V2 cannot use '
                'its weights.')
    if any('cpb_mlp' in str(key) or 'continuous_position_bias_mlp' in str(key) for key in state):
        return 'a SwinV2 file, but not in a format that can be loaded: official, or our own.'
    return 'not a SwinV2 file.'
