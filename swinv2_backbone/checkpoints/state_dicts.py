"""State dicts of any format to the backbone's names, and back: dict in, dict out.

The formats are in :mod:`.formats`; :mod:`.convert` does the same from file to file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..layers.position_bias import relative_coords, relative_index
from ..layers.windows import Pair, WindowGrid
from .architecture import CONVOLUTION
from .errors import CheckpointError, list_keys
from .formats import FORMATS, OFFICIAL_BUFFERS
from .key_rules import Format, StateDict, translate
from .pretrained_windows import (
    METADATA_KEY,
    PretrainedWindows,
    window_size_from_tables,
    windows_from_metadata,
    windows_from_tables,
)
from .recognize import recognize, unwrap


@dataclass(frozen=True)
class Converted:
    """A state dict under the backbone's names, and what else its file holds.

    Attributes:
        format: Name of the format it came in.
        prefix: What preceded the format's names in the file.
        state: Parameters of the backbone, under its names.
        head: ``head.weight`` and ``head.bias`` of the ImageNet classifier; {} without one.
        dropped: Keys of the file that a backbone does not use (classifier, buffers, what is
            outside of the prefix), and names of further sets of weights in it.
        pretrained_window_sizes: (height, width) in tokens, for the stages that are recorded.
        window_source: Where these are recorded; '' if they are not.
        window_size: Window that the first stage last ran with, if a coordinate table records it.
        config: The config.json that belongs to the file, or {}.
    """

    format: str
    prefix: str
    state: StateDict
    head: StateDict = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    pretrained_window_sizes: PretrainedWindows = field(default_factory=dict)
    window_source: str = ''
    window_size: Pair | None = None
    config: dict = field(default_factory=dict)

    def may_lack(self, norm: str) -> bool:
        """Whether a file of this format may be without an output norm, 'norm0' to 'norm3'.

        A classifier has only the last; some headless models have none.
        """
        fmt = FORMATS[self.format]
        bare = not (fmt.prefix and self.prefix.endswith(fmt.prefix))
        return norm != 'norm3' or (fmt.bare_lacks_norm and bare)

    def in_file(self, key: str) -> str:
        """The name in the file of a parameter of the backbone, whether or not it is there."""
        return self.prefix + ', '.join(FORMATS[self.format].their_names(key))


def to_backbone(content: Mapping, source: str, prefix: str | None = None) -> Converted:
    """Recognize the format of a checkpoint and convert it to the backbone's names.

    Args:
        content: What the file holds: a state dict, bare or wrapped in 'model' or 'state_dict'.
        source: Where it came from, for messages.
        prefix: If given, only keys that start with it are used.

    Raises:
        CheckpointError: If no format matches, a key is not in its table, a parameter is not a
            finite floating-point tensor, or recorded window sizes are malformed.
    """
    try:
        state, metadata, left_aside = unwrap(content)
        outer = f'{prefix.rstrip(".")}.' if prefix else ''
        chosen, outside = _split(state, outer)
        if outer and not chosen:
            raise CheckpointError(f"no key starts with prefix='{outer}'; it has {list_keys(state)}")
        fmt, inner = recognize(chosen)
        path = outer + inner
        weights, beside = _split(chosen, inner)
        _check_tensors(weights, path)
        native, unknown = translate(weights, fmt, to_ours=True)
        if unknown:
            raise CheckpointError(
                f'({fmt.name} format) has keys that this format does not have: '
                f'{list_keys(path + key for key in unknown)}. Is it damaged, or '
                'of another model?'
            )
        unused = [key for key in native if _is_unused(key)]
        head = {key: native[key] for key in unused if key.startswith('head.')}
        if inner and fmt.prefix:
            head = _head_beside(beside, fmt, inner)
        kept = {key: value for key, value in native.items() if key not in unused}
        tables = windows_from_tables(native)
        recorded = tables or windows_from_metadata(metadata, path)
    except CheckpointError as error:
        raise CheckpointError(f'checkpoint {source}: {error}') from None
    return Converted(
        format=fmt.name,
        prefix=path,
        state=kept,
        head=head,
        dropped=[
            *(path + name for key in unused for name in fmt.their_names(key)),
            *(outer + key for key in beside),
            *outside,
            *left_aside,
        ],
        pretrained_window_sizes=recorded,
        window_source='relative_coords_table' if tables else METADATA_KEY if recorded else '',
        window_size=window_size_from_tables(native),
    )


def _split(state: Mapping, prefix: str) -> tuple[dict, dict]:
    """What starts with a prefix, without it, and the rest."""
    inside = {key[len(prefix) :]: state[key] for key in state if key.startswith(prefix)}
    return inside, {key: state[key] for key in state if not key.startswith(prefix)}


def _is_unused(key: str) -> bool:
    return key.startswith('head.') or key == 'mask_token' or key.endswith(OFFICIAL_BUFFERS)


def _head_beside(beside: Mapping, fmt: Format, prefix: str) -> StateDict:
    """The classifier that stands beside the backbone in its parent module."""
    parent = prefix[:-1].rpartition('.')[0]
    before = parent + '.' if parent else ''
    (ours,), (theirs,) = fmt.head_rule.ours, fmt.head_rule.theirs
    head = {}
    for key, value in beside.items():
        found = theirs and theirs.match(key)
        if ours and found and found[0] == before and isinstance(value, Tensor):
            head[ours.fill(found[1])] = value
    return head


def _check_tensors(state: Mapping, prefix: str) -> None:
    """Raise CheckpointError unless all are dense tensors and parameters floating point, finite."""
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f'{prefix}{key} is a {type(value).__name__}, not a tensor')
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = 'meta' if value.is_meta else 'quantized' if value.is_quantized else value.layout
            raise CheckpointError(f'{prefix}{key} is a {kind} tensor, not a dense one')
        if not value.is_floating_point() and not key.endswith(OFFICIAL_BUFFERS):
            raise CheckpointError(f'{prefix}{key} is {value.dtype}, not floating point')
    # A finite float64 that overflows float32, the backbone's own type, is refused, too.
    broken = [
        prefix + key
        for key, value in state.items()
        if not key.endswith(OFFICIAL_BUFFERS) and not value.float().isfinite().all()
    ]
    if broken:
        raise CheckpointError(f'NaN or infinity in {list_keys(broken)}')


def adapt_channels(converted: Converted, in_channels: int, how: str, source: str) -> Converted:
    """Weights of a checkpoint for another number of input channels; equal ones stay as they are.

    Args:
        converted: The weights under the backbone's names.
        in_channels: Input channels of the backbone.
        how: 'repeat': channel c gets the filters of channel c modulo the file's, all scaled by the
            file's channels over the backbone's; a single channel gets their sum. 'zero': the first
            channels get those of the file, the others zeros.
        source: Where the weights came from, for messages.

    Raises:
        CheckpointError: If `how` is 'zero' and the file has more channels.

    Source:
        'repeat' is what timm documents for its ``in_chans`` (``adapt_input_conv``).
    """
    weight = converted.state.get(CONVOLUTION)
    if weight is None or weight.ndim != 4 or weight.shape[1] == in_channels:
        return converted
    filters = weight.to(torch.promote_types(weight.dtype, torch.float32))
    theirs = weight.shape[1]
    if how == 'zero':
        if theirs > in_channels:
            raise CheckpointError(
                f'checkpoint {source}: it has {theirs} input channels, the backbone {in_channels}: '
                "adapt_channels='zero' adds channels alone; allowed here: 'repeat'"
            )
        more = (in_channels - theirs, *weight.shape[2:])
        filters = torch.cat((filters, filters.new_zeros(len(filters), *more)), 1)
    elif in_channels == 1:
        filters = filters.sum(1, keepdim=True)
    else:
        filters = filters[:, torch.arange(in_channels) % theirs] * (theirs / in_channels)
    return replace(converted, state={**converted.state, CONVOLUTION: filters})


# --- to another library ---------------------------------------------------------------------------


def from_backbone(state: Mapping, head: Mapping, fmt: Format) -> StateDict:
    """Weights under the backbone's names, renamed for another library.

    Args:
        state: Parameters under the backbone's names.
        head: ``head.weight`` and ``head.bias`` of an ImageNet classifier; {} for a backbone, which
            goes without the classifier's prefix.
        fmt: The library's format.

    Raises:
        CheckpointError: If a parameter has no place there.
    """
    theirs, unknown = translate(state, fmt, to_ours=False)
    if unknown:
        parts = ' '.join(sorted({key.split('.')[0] for key in unknown}))
        raise CheckpointError(
            f'the {fmt.name} format has no place for {list_keys(unknown)}; the converter leaves '
            f'them out with: --drop {parts}'
        )
    if not head:
        return theirs
    if head.keys() != {'head.weight', 'head.bias'}:
        raise CheckpointError(
            f'its classifier has only {list_keys(head)}; the converter leaves it out with: '
            '--drop head'
        )
    renamed = {fmt.head.replace('{p}', key.removeprefix('head.')): head[key] for key in head}
    return {fmt.prefix + key: value for key, value in theirs.items()} | renamed


def official_buffers(
    depths: Sequence[int],
    pretrained_windows: Sequence[Pair],
    window: Pair,
    map_size: Pair,
    shrinks_windows: bool = True,
) -> StateDict:
    """The buffers that the official model keeps among its weights, under its names.

    Args:
        depths: Blocks of each stage.
        pretrained_windows: Pretrained window size (height, width) in tokens of each stage.
        window: Window (height, width) in tokens that the model runs with.
        map_size: Height and width in tokens of the first stage's map.
        shrinks_windows: Whether windows larger than a map shrink to it (torchvision's do not).

    Returns:
        ``relative_coords_table (1, 2 Wh - 1, 2 Ww - 1, 2)`` and ``relative_position_index (N, N)``
        of each block; ``attn_mask (nW, N, N)``, 0 or -100, of those that shift.

    Raises:
        CheckpointError: If a map is not a whole number of windows.
    """
    buffers: StateDict = {}
    for i, depth in enumerate(depths):
        size = (map_size[0] // 2**i, map_size[1] // 2**i)
        for j in range(depth):
            grid = WindowGrid.for_map(size, window, shifted=j % 2 == 1)
            if grid.padded_size != grid.size:
                raise CheckpointError(
                    f'windows of {grid.window} tokens do not divide the map of {size} tokens of '
                    f'stage {i}; choose another window_size or img_size'
                )
            block, side = f'layers.{i}.blocks.{j}', grid.window if shrinks_windows else window
            table = relative_coords(side, pretrained_windows[i])
            buffers[f'{block}.attn.relative_coords_table'] = table[None]
            buffers[f'{block}.attn.relative_position_index'] = relative_index(side)
            valid = grid.attention_mask(torch.device('cpu'))
            if valid is not None:
                buffers[f'{block}.attn_mask'] = -100.0 * (~valid).float()
    return buffers


def export_buffers(buffers: Mapping, fmt: Format) -> StateDict:
    """Those buffers of :func:`official_buffers` that a library saves, under its names."""
    saved = {key: value for key, value in buffers.items() if key.endswith(fmt.buffers)}
    if fmt.flat_index:
        for key, value in saved.items():
            saved[key] = value.flatten() if key.endswith('relative_position_index') else value
    return translate(saved, fmt, to_ours=False)[0]
