"""Which windows a position bias was trained with: how files, and what lies beside them, tell it.

It is the unit of the bias (see :mod:`.position_bias`), and the setting that people get wrong.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..arguments import ARCHITECTURES, NUM_STAGES, is_int, parse_windows
from ..layers.windows import Pair
from .errors import CheckpointError
from .files import METADATA_KEY
from .releases import RELEASES, Release, find_release

Windows = dict[int, Pair]

# What transformers lets a config change, and the backbone does not.
_COMPUTED = dict(
    hidden_act='gelu', layer_norm_eps=1e-5, qkv_bias=True, use_absolute_embeddings=False
)


def agree(said: Sequence[Pair | None], told: Windows, source: str, told_by: str) -> list[Pair]:
    """The pretrained windows of a backbone's stages: as set, unless a file tells others.

    Args:
        said: What the backbone was built with; None is for the file to tell.
        told: What the file tells.
        source: The file, for messages.
        told_by: What in it tells them, for messages.

    Raises:
        CheckpointError: If the two differ, or neither tells.
    """
    if any(window is None and i not in told for i, window in enumerate(said)):
        raise CheckpointError(
            f'{source}: does not tell with which windows its position bias was trained, as '
            "pretrained_window_sizes='auto' wants. Set it: 8 for the w8 releases, [16, 16, 16, 8] "
            'for w16, [12, 12, 12, 6] for w12 and what was fine-tuned from it'
        )
    if any(window is not None and told.get(i, window) != window for i, window in enumerate(said)):
        right = [told.get(i, window) for i, window in enumerate(said)]
        right += [told[i] for i in sorted(told) if i >= len(said)]
        raise CheckpointError(
            f'{source}: its position bias was trained with other windows ({told_by}) than '
            f'pretrained_window_sizes says ({as_setting(said)}): set '
            f'pretrained_window_sizes={as_setting(right)}'
        )
    return [told.get(i, window) for i, window in enumerate(said)]


def as_setting(windows: Sequence[Pair]) -> int | list:
    """Windows in the shortest form that ``pretrained_window_sizes`` takes."""
    sides = [height if height == width else (height, width) for height, width in windows]
    if sides[1:] == sides[:-1] and isinstance(sides[0], int):
        return sides[0]
    return sides + sides[-1:] * (NUM_STAGES - len(sides))


def windows_from_tables(state: Mapping) -> Windows:
    """The windows that the tables of coordinates in a file were computed for.

    An entry is sign(t) log2(1 + |t|) / log2(8) with t = 8 d / (p - 1) for an offset of d tokens, so
    the largest offset, which the table's size gives, tells p.

    Args:
        state: Tensors under the official names.

    Raises:
        CheckpointError: If a table is none.
    """
    windows: Windows = {}
    for key, table in state.items():
        match = re.fullmatch(r'layers\.(\d+)\.blocks\.\d+\.attn\.relative_coords_table', key)
        if match is None or int(match[1]) in windows:
            continue
        if (
            table.ndim != 4
            or table.shape[0] != 1
            or 0 in table.shape
            or table.shape[-1] != 2
            or not table.is_floating_point()
        ):
            raise CheckpointError(
                f'{key} is {table.dtype} {tuple(table.shape)}, not floating '
                'point (1, rows, columns, 2)'
            )
        offsets = [(side - 1) / 2 for side in table.shape[1:3]]
        if min(offsets) < 1:
            continue  # A window of one token has one offset, 0, in any unit.
        largest = table.double().flatten(0, 2).amax(0).tolist()
        units = [8 * d / (8**t - 1) for d, t in zip(offsets, largest, strict=True) if 0 < t < 10]
        if len(units) < 2:
            raise CheckpointError(f'{key} holds no coordinates: its largest are {largest}')
        windows[int(match[1])] = (round(units[0]) + 1, round(units[1]) + 1)
    return windows


def running_window(state: Mapping) -> Pair | None:
    """The window that a model last ran with in its first stage, as its table there tells."""
    table = state.get('layers.0.blocks.0.attn.relative_coords_table')
    return table if table is None else tuple((side + 1) // 2 for side in table.shape[1:3])


def windows_from_metadata(metadata: Mapping | None, prefix: str) -> Windows:
    """The windows that a file of ours notes for the model under a prefix.

    Raises:
        CheckpointError: If what is noted is no windows.
    """
    for module in (prefix.rstrip('.'), ''):
        noted = (metadata or {}).get(module, {})
        noted = noted.get(METADATA_KEY) if isinstance(noted, Mapping) else None
        if noted is not None:
            try:
                return read_windows(noted)
            except CheckpointError as error:
                raise CheckpointError(f'its metadata has {error}') from None
    return {}


def read_windows(noted: object) -> Windows:
    """Windows as they are noted, one (height, width) a stage.

    Raises:
        CheckpointError: If they are something else.
    """
    fits = (
        isinstance(noted, (list, tuple))
        and 0 < len(noted) <= NUM_STAGES
        and all(
            isinstance(pair, (list, tuple))
            and len(pair) == 2
            and all(is_int(side) and side > 0 for side in pair)
            for pair in noted
        )
    )
    if not fits:
        raise CheckpointError(f'{METADATA_KEY}={noted!r} is not a (height, width) a stage')
    return {i: tuple(pair) for i, pair in enumerate(noted)}


def config_beside(path: Path, fmt: str, arch: Mapping) -> dict:
    """The config.json that transformers and timm keep beside a file of theirs, or {}.

    One that describes another model, whatever brought it there, is none.

    Args:
        path: The file.
        fmt: Its format.
        arch: ``embed_dims, depths, num_heads`` of its weights.

    Raises:
        CheckpointError: If it cannot be read, or describes a SwinV2 that computes something else.
    """
    file = path.parent / 'config.json'
    if not fmt.startswith(('hf', 'timm')) or not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f'{file}, which lies beside it, cannot be read ({error})') from error
    if not isinstance(config, dict):
        return {}
    if fmt != 'hf':
        release = _timm_release(config)
        return config if release and _is_of(arch, ARCHITECTURES[release.arch]) else {}
    told = {
        ours: config[theirs]
        for ours, theirs in (
            ('embed_dims', 'embed_dim'),
            ('depths', 'depths'),
            ('num_heads', 'num_heads'),
        )
        if theirs in config
    }
    if config.get('model_type') != 'swinv2' or not _is_of(arch, told):
        return {}
    for key, value in _COMPUTED.items():
        if config.get(key, value) != value:
            raise CheckpointError(
                f'{file}, which lies beside it, has {key}={config[key]!r}; the '
                f'backbone computes with {value!r}'
            )
    return config


def windows_beside(
    path: Path, source: str, fmt: str, arch: Mapping, config: Mapping
) -> tuple[Windows, str]:
    """The windows that a config.json tells, or else the name of a known release.

    Args:
        path: The file.
        source: Where it came from: a path, a URL or a hub's address.
        fmt: Its format.
        arch: ``embed_dims, depths, num_heads`` of its weights.
        config: What :func:`config_beside` found.

    Returns:
        The windows, and what tells them; none, and '', if nothing does.

    Raises:
        CheckpointError: If the config.json has windows that are none.
    """
    try:
        windows = _windows_of_hf(config) if fmt == 'hf' else _windows_of_timm(config)
        if config and windows:
            return read_windows([windows[i] for i in range(NUM_STAGES)]), 'config.json'
    except (CheckpointError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f'{path.parent / "config.json"}, which lies beside it, tells no windows ({error})'
        ) from error
    release = find_release(source) or find_release(path.name)
    if release and fmt.startswith(release.format) and _is_of(arch, ARCHITECTURES[release.arch]):
        return dict(enumerate(release.windows)), 'its name'
    return {}, ''


def _is_of(arch: Mapping, told: Mapping) -> bool:
    return all(
        arch.get(key) == (tuple(value) if isinstance(value, list) else value)
        for key, value in told.items()
    )


def _windows_of_hf(config: Mapping) -> Windows:
    """transformers: 0 stands for the window that the model runs with."""
    if not config:
        return {}
    trained = config.get('pretrained_window_sizes', [0] * NUM_STAGES)
    running = _shrunk(
        parse_windows('window_size', config.get('window_size', 7)),
        config.get('image_size', 224),
        config.get('patch_size', 4),
    )
    return {i: _pair(trained[i]) if trained[i] else running[i] for i in range(NUM_STAGES)}


def _timm_release(config: Mapping) -> Release | None:
    return next(
        (
            release
            for release in RELEASES.values()
            if release.name.startswith(f'timm/{config.get("architecture")}.')
        ),
        None,
    )


def _windows_of_timm(config: Mapping) -> Windows:
    """timm: the architecture's name tells, but for what model_args say was built differently."""
    release, changed = _timm_release(config), config.get('model_args') or {}
    if release is None or 'pretrained_window_sizes' in changed:
        return {}
    if re.search(r'window\d+to\d', release.name):  # The first is given to the constructor.
        return dict(enumerate(release.windows))
    windows = parse_windows('window_size', changed.get('window_size') or release.windows[0])
    return _shrunk(
        windows, changed.get('img_size') or release.image_size, changed.get('patch_size') or 4
    )


def _shrunk(windows: Sequence[Pair], image_size: int | Sequence, patch: int | Sequence) -> Windows:
    """The windows of the stages of a model that shrinks them to its maps when it is built."""
    sides = list(zip(_pair(image_size), _pair(patch), strict=True))
    return {
        i: tuple(min(w, s // (p * 2**i)) for w, (s, p) in zip(window, sides, strict=True))
        for i, window in enumerate(windows)
    }


def _pair(value: int | Sequence) -> Pair:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)
