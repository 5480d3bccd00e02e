"""Conversion from file to file: what tools/model_converters/convert_checkpoint.py runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..arguments import check_int, is_int
from ..layers.windows import Pair
from .architecture import arch_of, expected_parameters, settings_of
from .config_json import hf_config
from .download import HUB_FILES
from .files import atomic_file, hash_in_name, require_safetensors, write_checkpoint
from .formats import FORMATS
from .key_rules import Format, StateDict
from .loading import check_weights, open_checkpoint
from .pretrained_windows import parse_pretrained_windows, reconcile
from .releases import find_release
from .state_dicts import Converted, export_buffers, from_backbone, official_buffers

DROPPABLE = ('norm0', 'norm1', 'norm2', 'norm3', 'head')


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` did; as a string, one line about it.

    Attributes:
        file: The file of weights that was written, in `format`, with `num_tensors` tensors.
        window_size: Window in tokens that it is for; None if the format is not for one size.
        image_size: Side in pixels of the images that it is for; None likewise.
        dropped: Names of the parameters that were left out.
    """

    source: str
    source_format: str
    file: Path
    format: str
    num_tensors: int
    window_size: int | None = None
    image_size: int | None = None
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        line = (
            f'{self.source} ({self.source_format}) -> {self.file} ({self.format}): '
            f'{self.num_tensors} tensors'
        )
        if self.window_size is not None:
            size = f'{self.image_size} x {self.image_size}'
            line += f'; for windows of {self.window_size} on images of {size}'
        return line + (f'; left out: {", ".join(self.dropped)}' if self.dropped else '')


def convert(
    source: str,
    destination: str | Path,
    to: str,
    *,
    safetensors: bool = False,
    prefix: str | None = None,
    drop: Sequence[str] = (),
    pretrained_window_sizes: int | Sequence | None = None,
    window_size: int | None = None,
    img_size: int | None = None,
    force: bool = False,
) -> Conversion:
    """Convert a checkpoint to another format.

    A source without classifier (a backbone of ours, a headless model) becomes a backbone there.

    Args:
        source: A path, a URL, ``hf://owner/name[/file]`` or ``swinv2://NAME``, in any format.
        destination: The file to write; for 'hf' a folder, which also gets a config.json.
        to: Name of the format to write, a key of ``FORMATS``.
        safetensors: Write safetensors instead of torch's format.
        prefix: Use only keys of the source that start with it.
        drop: Parts to leave out, for formats that have no place for them: ``DROPPABLE``.
        pretrained_window_sizes: Windows in tokens that the position bias was trained with, where
            the source does not record them: an int, a (height, width) pair, or one per stage.
        window_size: Window in tokens that the result runs with, for formats whose files are for one
            size. If not given: as recorded in the source, or the pretrained one.
        img_size: Side in pixels of the images that it runs on, likewise.
        force: Overwrite the destination.

    Raises:
        ValueError: If an argument is not allowed; the message begins with its name.
        CheckpointError: If the source cannot be used, or does not fit into the format.
        FileNotFoundError, ConnectionError, ImportError: As :func:`~.loading.open_checkpoint`.
    """
    fmt, file = _check_arguments(destination, to, safetensors, drop, window_size, img_size, force)
    converted = open_checkpoint(source, prefix)
    settings = settings_of(converted.state, f'checkpoint {source} ({converted.format} format)')
    check_weights(converted, expected_parameters(**settings), source)
    windows = _pretrained_windows(pretrained_window_sizes, converted, source, fmt)
    state, head = (_without(drop, part) for part in (converted.state, converted.head))
    dropped = (converted.state.keys() | converted.head.keys()) - state.keys() - head.keys()
    if absent := set(drop) - {key.split('.')[0] for key in dropped}:
        raise ValueError(f'drop: {source} has no {", ".join(sorted(absent))}')
    theirs = from_backbone(state, head, fmt)
    config, window, side = {}, None, None
    if windows and fmt.is_for_one_size:
        window, side = find_sizes(window_size, img_size, converted, source, windows)
        theirs |= _buffers(converted, windows, window, side, fmt, fmt.prefix if head else '')
        if fmt.config_json == 'transformers':
            labels = converted.config.get('id2label')
            config = hf_config(state, head, windows, window, side, labels)
    write_checkpoint(theirs, file, None if safetensors else fmt.wrapper, windows, safetensors)
    if config:
        _write_config(config, file)
    left_out = tuple(sorted(dropped))
    return Conversion(source, converted.format, file, fmt.name, len(theirs), window, side, left_out)


def _check_arguments(
    destination: str | Path,
    to: str,
    safetensors: bool,
    drop: Sequence[str],
    window_size: int | None,
    img_size: int | None,
    force: bool,
) -> tuple[Format, Path]:
    """The format and the file of weights to write, if the arguments allow it."""
    if to not in FORMATS:
        raise ValueError(f'to: got {to!r}, allowed: {", ".join(FORMATS)}')
    if isinstance(drop, str) or not set(drop) <= set(DROPPABLE):
        raise ValueError(f'drop: got {drop!r}, allowed: a list of {", ".join(DROPPABLE)}')
    for name, value in (('window_size', window_size), ('img_size', img_size)):
        if value is not None:
            check_int(name, value, 1)
            if not FORMATS[to].is_for_one_size:
                raise ValueError(f'{name}: got {value}, but a file of the {to} format has none')
    fmt, path = FORMATS[to], Path(destination)
    file, written = path, [path]
    if fmt.config_json == 'transformers':
        file = path / HUB_FILES[0 if safetensors else 1]
        written = [path / name for name in (*HUB_FILES, 'config.json')]
        if path.is_file():
            raise ValueError(f'destination: {path} is a file, allowed for {to}: a folder')
    elif path.is_dir():
        raise ValueError(f'destination: {path} is a folder, allowed for {to}: a file')
    if safetensors:
        require_safetensors(file)
    if hash_in_name(file.name):
        raise ValueError(
            f'destination: {file} ends in the digits of a sha256, and the file to be written will '
            'have another; choose another name'
        )
    for existing in written:
        if existing.exists() and not force:
            raise ValueError(f'destination: {existing} exists; force overwrites it')
    return fmt, file


def _pretrained_windows(
    setting: int | Sequence | None, converted: Converted, source: str, fmt: Format
) -> list[Pair] | None:
    """The sizes as set, as the source records them, or None if neither and they are not needed."""
    recorded = converted.pretrained_window_sizes
    if setting is None and not recorded:
        if not fmt.is_for_one_size:
            return None
        raise ValueError(
            f'pretrained_window_sizes: {source} records none, and a file of the {fmt.name} format '
            'contains what follows from them: give them'
        )
    configured = parse_pretrained_windows('auto' if setting is None else setting, ())
    return reconcile(configured, recorded, f'checkpoint {source}', converted.window_source)


def find_sizes(
    window_size: int | None,
    img_size: int | None,
    converted: Converted,
    source: str,
    pretrained_windows: Sequence[Pair],
) -> tuple[int, int]:
    """Window and image size that the result is for: as given, or as the source last ran with."""
    release, config = find_release(source), converted.config
    pretrained, last = pretrained_windows[0][0], pretrained_windows[-1][0]
    window = (
        window_size
        or (converted.window_size and converted.window_size[0])
        or config.get('window_size')
        or (release.window_size if release else pretrained)
    )
    if not is_int(window):
        raise ValueError(f'window_size: {source} runs with {window}; give one integer')
    side = (
        img_size
        or config.get('image_size')
        or (release.image_size if release else 32 * last * window // pretrained)
    )
    if not is_int(side):
        raise ValueError(f'img_size: {source} runs on images of {side}; give one integer')
    return window, side


def _buffers(
    converted: Converted,
    pretrained_windows: Sequence[Pair],
    window: int,
    img_size: int,
    fmt: Format,
    prefix: str,
) -> StateDict:
    """The buffers that files of a format contain, under its names."""
    side = img_size // converted.state['patch_embed.proj.weight'].shape[-1]
    buffers = official_buffers(
        arch_of(converted.state)['depths'],
        pretrained_windows,
        (window, window),
        (side, side),
        fmt.shrinks_windows,
    )
    return {prefix + key: value for key, value in export_buffers(buffers, fmt).items()}


def _without(modules: Sequence[str], state: StateDict) -> StateDict:
    return {key: value for key, value in state.items() if key.split('.')[0] not in modules}


def _write_config(config: dict, file: Path) -> None:
    """Write config.json, and remove weights in the other container, which would be loaded first."""
    with atomic_file(file.parent / 'config.json') as partial:
        Path(partial).write_text(json.dumps(config, indent=2) + '\n')
    for name in HUB_FILES:
        if name != file.name:
            (file.parent / name).unlink(missing_ok=True)
