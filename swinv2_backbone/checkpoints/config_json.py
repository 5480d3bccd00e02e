"""config.json, which transformers and timm keep beside a file of weights: read and written."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..arguments import ARCHITECTURES, NUM_STAGES, parse_windows
from ..layers.windows import Pair
from .architecture import settings_of
from .errors import CheckpointError
from .formats import FORMATS
from .pretrained_windows import PretrainedWindows, check_recorded
from .releases import RELEASES, Release

# Settings that transformers lets a config change, and the value that the backbone computes with.
_FIXED = dict(hidden_act='gelu', layer_norm_eps=1e-5, qkv_bias=True, use_absolute_embeddings=False)
_ARCH = dict(embed_dims='embed_dim', depths='depths', num_heads='num_heads')


def read_config_json(path: Path, fmt: str, arch: Mapping) -> dict:
    """The config.json of a file of weights; {} if there is none or it describes another model.

    Args:
        path: The file of weights.
        fmt: Name of its format.
        arch: As :func:`~.architecture.arch_of` gives it.

    Raises:
        CheckpointError: If it cannot be read, or describes a SwinV2 that computes something else.
    """
    file, library = path.parent / 'config.json', FORMATS[fmt].config_json
    if not library or not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f'{file} cannot be read ({error})') from error
    if not isinstance(config, dict):
        return {}
    if library == 'timm':
        release = _timm_release(config)
        return config if release and arch == ARCHITECTURES[release.arch] else {}
    theirs = {ours: config[theirs] for ours, theirs in _ARCH.items() if theirs in config}
    same = all(
        arch.get(key) == (tuple(value) if isinstance(value, list) else value)
        for key, value in theirs.items()
    )
    if config.get('model_type') != 'swinv2' or not same:
        return {}
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise CheckpointError(
                f'{file} has {key}={config[key]!r}; the backbone computes with {value!r}'
            )
    return config


def windows_from_config(config: Mapping, fmt: str, path: Path) -> PretrainedWindows:
    """The pretrained window sizes that :func:`read_config_json` has found, or {}.

    Raises:
        CheckpointError: If its window sizes are malformed.
    """
    if not config:
        return {}
    is_timm = FORMATS[fmt].config_json == 'timm'
    try:
        windows = _windows_of_timm(config) if is_timm else _windows_of_transformers(config)
        return check_recorded([windows[i] for i in range(NUM_STAGES)]) if windows else {}
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f'{path.parent / "config.json"} records no valid pretrained window sizes ({error})'
        ) from error


def _windows_of_transformers(config: Mapping) -> PretrainedWindows:
    """In transformers, 0 stands for the window that the model runs with."""
    recorded = config.get('pretrained_window_sizes', [0] * NUM_STAGES)
    current = _shrink(
        parse_windows('window_size', config.get('window_size', 7)),
        config.get('image_size', 224),
        config.get('patch_size', 4),
    )
    return {i: _pair(recorded[i]) if recorded[i] else current[i] for i in range(NUM_STAGES)}


def _timm_release(config: Mapping) -> Release | None:
    start = f'timm/{config.get("architecture")}.'
    return next((each for each in RELEASES.values() if each.name.startswith(start)), None)


def _windows_of_timm(config: Mapping) -> PretrainedWindows:
    """In timm, they follow from the architecture's name and from what model_args change."""
    release, changed = _timm_release(config), config.get('model_args') or {}
    if release is None or 'pretrained_window_sizes' in changed:
        return {}
    if re.search(r'window\d+to\d', release.name):  # The first is given to the constructor.
        return dict(enumerate(release.pretrained_window_sizes))
    window = changed.get('window_size') or release.pretrained_window_sizes[0]
    return _shrink(
        parse_windows('window_size', window),
        changed.get('img_size') or release.image_size,
        changed.get('patch_size') or 4,
    )


def _shrink(
    windows: Sequence[Pair], image_size: int | Sequence, patch: int | Sequence
) -> PretrainedWindows:
    """The windows of the stages of a model that shrinks them to its maps when it is built."""
    height, width = (s // p for s, p in zip(_pair(image_size), _pair(patch), strict=True))
    return {
        i: (min(window[0], height // 2**i), min(window[1], width // 2**i))
        for i, window in enumerate(windows)
    }


def _pair(value: int | Sequence) -> Pair:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def hf_config(
    state: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    pretrained_windows: Sequence[Pair],
    window: int,
    image_size: int,
    labels: Mapping | None = None,
) -> dict:
    """The config.json with which transformers builds the model of these weights.

    Args:
        state: Parameters under the backbone's names.
        head: The classifier's ``head.weight`` and ``head.bias``, or {}.
        pretrained_windows: Pretrained window size (height, width) in tokens of each stage.
        window: Side in tokens of the window that the model runs with.
        image_size: Side of the image in pixels.
        labels: Names of the classes by index; LABEL_0 and so on if not given.

    Raises:
        CheckpointError: If a pretrained window is not square, which transformers cannot express.
    """
    if any(height != width for height, width in pretrained_windows):
        raise CheckpointError(
            f'the hf format has no place for pretrained window sizes of {pretrained_windows}'
        )
    settings = settings_of(state)
    config = dict(
        architectures=['Swinv2ForImageClassification' if head else 'Swinv2Model'],
        model_type='swinv2',
        image_size=image_size,
        patch_size=settings['patch_size'],
        num_channels=settings['in_channels'],
        **{theirs: settings['arch'][ours] for ours, theirs in _ARCH.items()},
        window_size=window,
        pretrained_window_sizes=[height for height, _ in pretrained_windows],
        mlp_ratio=settings['mlp_ratio'],
        **_FIXED,
    )
    if head:
        count = head['head.weight'].shape[0]
        if not labels or len(labels) != count:
            labels = {i: f'LABEL_{i}' for i in range(count)}
        config |= dict(id2label=labels, label2id={name: int(i) for i, name in labels.items()})
    return config
