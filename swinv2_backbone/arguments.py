"""Checks of what users pass to the backbone, and conversion into one form.

A window is a (height, width) pair in tokens.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TypeGuard

from torch import Tensor

from .layers.windows import Pair

NUM_STAGES = 4

ARCHITECTURES = {
    'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    'small': dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    'base': dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    'large': dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}


def is_int(value: object) -> TypeGuard[int]:
    """Whether `value` is an integer and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_int(name: str, value: int, low: int, high: float = math.inf) -> int:
    """`value` as an int, if it is an integer from `low` to `high`; errors as in check_float."""
    return int(_check_number('an integer', Integral, name, value, low, high))


def check_float(name: str, value: float, low: float, high: float = math.inf) -> float:
    """`value` as a float, if it is a finite number from `low` to `high`.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is below `low`, above `high`, or not finite.
    """
    return float(_check_number('a number', Real, name, value, low, high))


def _check_number(noun: str, kind: type, name: str, value: float, low: float, high: float) -> float:
    allowed = f'{noun} ' + (f'of at least {low}' if high == math.inf else f'from {low} to {high}')
    if not isinstance(value, kind) or isinstance(value, bool):
        raise wrong_type(name, value, allowed)
    if not low <= value <= high or value == math.inf:
        raise ValueError(f'{name}: got {value}, allowed: {allowed}')
    return value


def check_bool(name: str, value: bool) -> bool:
    """`value`, if it is a bool; else TypeError."""
    if not isinstance(value, bool):
        raise wrong_type(name, value, 'True or False')
    return value


def parse_with_cp(value: bool | Sequence[bool]) -> tuple[bool, ...]:
    """Whether each stage recomputes its blocks; one bool is for all stages.

    Raises:
        TypeError: If it is neither a bool nor a sequence of bools.
        ValueError: If a sequence does not have one entry per stage.
    """
    allowed = f'True, False, or {NUM_STAGES} of them, one per stage'
    values = value if isinstance(value, (list, tuple)) else (value,) * NUM_STAGES
    if not all(isinstance(each, bool) for each in values):
        raise wrong_type('with_cp', value, allowed)
    if len(values) != NUM_STAGES:
        raise ValueError(f'with_cp: got {value!r}, {len(values)} entries, allowed: {allowed}')
    return tuple(values)


def wrong_type(name: str, value: object, allowed: str) -> TypeError:
    """The error for an argument of a type that is not allowed."""
    return TypeError(f'{name}: got {value!r} ({type(value).__name__}), allowed: {allowed}')


def parse_init_cfg(value: dict | list | None) -> list[dict]:
    """mmengine's initialization config, as a list of dicts.

    Raises:
        TypeError: If it is neither None, nor a dict, nor a list of dicts.
        ValueError: If a dict has no type.
    """
    configs = [value] if isinstance(value, dict) else value if value is not None else []
    allowed = "a dict with a 'type', a list of such dicts, or None"
    if not isinstance(configs, (list, tuple)) or not all(isinstance(c, dict) for c in configs):
        raise wrong_type('init_cfg', value, allowed)
    if not all(cfg.get('type') for cfg in configs):
        raise ValueError(f'init_cfg: got {value!r}, allowed: {allowed}')
    return list(configs)


def parse_arch(arch: str | dict) -> dict:
    """The settings ``embed_dims, depths, num_heads`` of an architecture.

    Args:
        arch: A name, its initial, or a dict of the three.

    Raises:
        TypeError: If it is neither a name nor a dict, or a setting does not consist of integers.
        ValueError: If the name is unknown, keys are missing or unknown, a sequence does not have
            one entry per stage, or the heads of a stage do not divide its channels.
    """
    if isinstance(arch, str):
        for name, settings in ARCHITECTURES.items():
            if arch.lower() in (name, name[0]):
                return settings
        names = ', '.join(f"'{name}' ('{name[0]}')" for name in ARCHITECTURES)
        raise ValueError(
            f'arch: got {arch!r}, allowed: {names}, or dict(embed_dims=, depths=, num_heads=)'
        )
    if not isinstance(arch, dict):
        raise wrong_type('arch', arch, 'a name or dict(embed_dims=, depths=, num_heads=)')
    keys = ['embed_dims', 'depths', 'num_heads']
    if set(arch) != set(keys):
        raise ValueError(
            f'arch: got a dict with the keys {sorted(map(str, arch))}, allowed: exactly {keys}'
        )
    embed_dims = check_int("arch['embed_dims']", arch['embed_dims'], 1)
    depths, num_heads = (
        _stage_ints(f"arch['{key}']", arch[key]) for key in ('depths', 'num_heads')
    )
    for i, heads in enumerate(num_heads):
        if (embed_dims * 2**i) % heads:
            raise ValueError(
                f"arch['num_heads']: got {heads} heads at stage {i}, allowed: a "
                f'divisor of its {embed_dims * 2**i} channels'
            )
    return dict(embed_dims=embed_dims, depths=depths, num_heads=num_heads)


def _stage_ints(name: str, values: Sequence[int]) -> tuple[int, ...]:
    allowed = f'{NUM_STAGES} integers, one per stage'
    if not isinstance(values, (list, tuple)):
        raise wrong_type(name, values, allowed)
    if len(values) != NUM_STAGES:
        raise ValueError(f'{name}: got {values!r}, allowed: {allowed}')
    return tuple(check_int(f'{name}[{i}]', value, 1) for i, value in enumerate(values))


_ONE_WINDOW = 'an integer or a (height, width) pair, in tokens'
_WINDOWS = f'an integer, a (height, width) pair, or {NUM_STAGES} of either, one per stage'


def parse_windows(name: str, value: int | Sequence, low: int = 1) -> tuple[Pair, ...]:
    """Windows as (height, width) pairs, one per stage.

    Args:
        name: Name of the argument, for messages.
        value: An int, a (height, width) pair, or one entry per stage, each an int or a pair.
        low: Smallest side allowed.

    Raises:
        TypeError: If an entry is neither an integer nor a pair of integers.
        ValueError: If a side is too small, or the number of entries is none of the above.
    """
    if isinstance(value, (list, tuple)) and not (len(value) == 2 and all(map(is_int, value))):
        if len(value) != NUM_STAGES:
            raise ValueError(f'{name}: got {value!r}, {len(value)} entries, allowed: {_WINDOWS}')
        return tuple(_window(f'{name}[{i}]', entry, low) for i, entry in enumerate(value))
    return (_window(name, value, low, _WINDOWS),) * NUM_STAGES


def _window(name: str, value: int | Sequence, low: int, allowed: str = _ONE_WINDOW) -> Pair:
    if isinstance(value, (list, tuple)):
        if len(value) != 2:
            raise ValueError(f'{name}: got {value!r}, allowed: {allowed}')
        return check_int(name, value[0], low), check_int(name, value[1], low)
    if not is_int(value):
        raise wrong_type(name, value, allowed)
    side = check_int(name, value, low)
    return side, side


def parse_out_indices(value: Sequence[int]) -> tuple[int, ...]:
    """Indices of the stages whose maps are returned, as a tuple.

    Raises:
        TypeError: If it is not a sequence of integers.
        ValueError: If it is empty, an index is out of range, or they do not increase.
    """
    allowed = f'increasing stage indices from 0 to {NUM_STAGES - 1}, such as (0, 1, 2, 3)'
    if not isinstance(value, (list, tuple)):
        raise wrong_type('out_indices', value, allowed)
    indices = tuple(
        check_int(f'out_indices[{i}]', index, 0, NUM_STAGES - 1) for i, index in enumerate(value)
    )
    if not indices or list(indices) != sorted(set(indices)):
        raise ValueError(f'out_indices: got {value!r}, allowed: {allowed}')
    return indices


def check_images(x: Tensor, in_channels: int) -> None:
    """Check the input of a forward.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If its shape is not (B, in_channels, H, W), or it is empty.
    """
    allowed = f'a floating-point tensor (B, {in_channels}, H, W)'
    if not isinstance(x, Tensor):
        raise TypeError(f'x: got a {type(x).__name__}, allowed: {allowed}')
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(f'x: got shape {tuple(x.shape)}, allowed: {allowed}')
    if not x.is_floating_point():
        raise TypeError(f'x: got {x.dtype}, allowed: {allowed}')
    if 0 in x.shape:
        raise ValueError(
            f'x: got an empty tensor of shape {tuple(x.shape)}, allowed: {allowed} with B, H, W '
            '>= 1'
        )
