"""Checks and normal forms of what users pass to the backbone."""

from collections.abc import Sequence
from numbers import Integral, Real

from .layers.windows import Pair

NUM_STAGES = 4

ARCHITECTURES = {
    'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    'small': dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    'base': dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    'large': dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}


def is_int(value: object) -> bool:
    """Whether `value` is an integer and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_int(name: str, value: int, low: int, high: int | None = None) -> int:
    """`value` as an int.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is below `low` or above `high`.
    """
    allowed = 'an integer ' + (f'of at least {low}' if high is None else f'from {low} to {high}')
    if not is_int(value):
        raise TypeError(f'{name}: got {value!r} ({type(value).__name__}), allowed: {allowed}')
    if value < low or (high is not None and value > high):
        raise ValueError(f'{name}: got {value}, allowed: {allowed}')
    return int(value)


def check_probability(name: str, value: float) -> float:
    """`value` as a float.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it lies outside 0 to 1.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(
            f'{name}: got {value!r} ({type(value).__name__}), allowed: a number from 0 to 1'
        )
    if not 0 <= value <= 1:
        raise ValueError(f'{name}: got {value}, allowed: a number from 0 to 1')
    return float(value)


def check_bool(name: str, value: bool) -> bool:
    """`value`, if it is a bool; else TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f'{name}: got {value!r} ({type(value).__name__}), allowed: True or False')
    return value


def check_mlp_ratio(value: float, embed_dims: int) -> float:
    """`value` as a float.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it leaves the first stage's MLPs, on `embed_dims` channels, no hidden one.
    """
    allowed = f'a number of at least 1 / {embed_dims}'
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f'mlp_ratio: got {value!r} ({type(value).__name__}), allowed: {allowed}')
    if not 1 <= value * embed_dims < float('inf'):
        raise ValueError(f'mlp_ratio: got {value}, allowed: {allowed}')
    return float(value)


def parse_init_cfg(value: dict | list | None) -> list[dict]:
    """mmengine's initialization config, as a list of dicts.

    Raises:
        TypeError: If it is none, or no dict or sequence of dicts.
        ValueError: If one of them has no type.
    """
    configs = [value] if isinstance(value, dict) else value if value is not None else []
    allowed = "a dict with a 'type', a list of such, or None"
    if not isinstance(configs, (list, tuple)) or not all(isinstance(c, dict) for c in configs):
        raise TypeError(f'init_cfg: got {value!r}, allowed: {allowed}')
    if not all(cfg.get('type') for cfg in configs):
        raise ValueError(f'init_cfg: got {value!r}, allowed: {allowed}')
    return list(configs)


def parse_arch(arch: str | dict) -> dict:
    """The settings ``embed_dims, depths, num_heads`` of an architecture.

    Args:
        arch: A name, its initial, or a dict of the three.

    Raises:
        TypeError: If it is neither, or a setting is not made of integers.
        ValueError: If the name is unknown, keys are missing or unknown, a sequence does not have
            four entries, or heads do not divide the channels of their stage.
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
        raise TypeError(
            f'arch: got {arch!r} ({type(arch).__name__}), allowed: a name or '
            'dict(embed_dims=, depths=, num_heads=)'
        )
    wanted = ['embed_dims', 'depths', 'num_heads']
    if set(arch) != set(wanted):
        raise ValueError(
            f'arch: got a dict with the keys {sorted(map(str, arch))}, allowed: exactly {wanted}'
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
    if not isinstance(values, (list, tuple)):
        raise TypeError(
            f'{name}: got {values!r} ({type(values).__name__}), allowed: {NUM_STAGES} integers'
        )
    if len(values) != NUM_STAGES:
        raise ValueError(f'{name}: got {values!r}, allowed: {NUM_STAGES} integers, one per stage')
    return tuple(check_int(f'{name}[{i}]', value, 1) for i, value in enumerate(values))


def parse_windows(name: str, value: int | Sequence, low: int = 1) -> tuple[Pair, ...]:
    """Windows in tokens, as one (height, width) pair a stage.

    Args:
        name: Name of the argument, for messages.
        value: An int, a (height, width) pair, or one entry per stage, each an int or a pair.
        low: Smallest side allowed.

    Raises:
        TypeError: If an entry is neither an integer nor a pair of integers.
        ValueError: If a side is too small or the number of entries fits none of the forms.
    """
    if is_int(value):
        return (_window(name, value, low),) * NUM_STAGES
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f'{name}: got {value!r} ({type(value).__name__}), allowed: an integer, a '
            f'(height, width) pair, or {NUM_STAGES} of either, one per stage'
        )
    if len(value) == 2 and all(is_int(side) for side in value):
        return (_window(name, value, low),) * NUM_STAGES
    if len(value) != NUM_STAGES:
        raise ValueError(
            f'{name}: got {value!r}, {len(value)} entries, allowed: an integer, a '
            f'(height, width) pair, or {NUM_STAGES} of either, one per stage'
        )
    return tuple(_window(f'{name}[{i}]', entry, low) for i, entry in enumerate(value))


def _window(name: str, value: int | Sequence[int], low: int) -> Pair:
    if is_int(value):
        side = check_int(name, value, low)
        return side, side
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f'{name}: got {value!r} ({type(value).__name__}), allowed: an integer or '
            'a (height, width) pair, in tokens'
        )
    if len(value) != 2:
        raise ValueError(
            f'{name}: got {value!r}, allowed: an integer or a (height, width) pair, in tokens'
        )
    return check_int(name, value[0], low), check_int(name, value[1], low)


def parse_out_indices(value: Sequence[int]) -> tuple[int, ...]:
    """Stages to output, as a tuple.

    Raises:
        TypeError: If it is not a sequence of integers.
        ValueError: If it is empty, names no stage, or is not in increasing order.
    """
    allowed = f'increasing stage indices from 0 to {NUM_STAGES - 1}, such as (0, 1, 2, 3)'
    if not isinstance(value, (list, tuple)):
        raise TypeError(f'out_indices: got {value!r} ({type(value).__name__}), allowed: {allowed}')
    indices = tuple(
        check_int(f'out_indices[{i}]', index, 0, NUM_STAGES - 1) for i, index in enumerate(value)
    )
    if not indices or list(indices) != sorted(set(indices)):
        raise ValueError(f'out_indices: got {value!r}, allowed: {allowed}')
    return indices
