"""What is in a checkpoint: which format, which model, under the backbone's own names.

Dict in, dict out; nothing here knows the model. The names themselves stand in :mod:`.key_maps`.
"""

import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..arguments import ARCHITECTURES, NUM_STAGES
from ..layers.windows import Pair
from .errors import CheckpointError
from .files import METADATA_KEY
from .formats import FORMATS, OFFICIAL_BUFFERS
from .key_rules import Format, StateDict, translate
from .pretrained_windows import running_window, windows_from_metadata, windows_from_tables

_WRAPPERS = ('model', 'state_dict')
# What the formats call the network of the position bias.
_NETWORKS = ('cpb_mlp', 'rpe_mlp', 'continuous_position_bias_mlp')
# What torch.compile, activation checkpointing and FSDP put into names.
_MARKS = re.compile(r'\b(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.')
_NAMED_KEYS = 10


@dataclass(frozen=True)
class Converted:
    """A state dict in the backbone's names.

    Attributes:
        format: Name of the format it came in.
        prefix: What stood in front of the format's names in the file.
        state: Parameters of the backbone, under its names.
        head: Weight and bias of the ImageNet classifier as ``head.weight``, ``head.bias``; or none.
        dropped: Keys of the file that a backbone has no use for (classifier, geometry, what
            stands outside of the prefix), and names of further sets of weights in it.
        windows: For each stage of which the file tells it, the (height, width) in tokens that its
            position bias was trained with.
        told_by: What in the file tells the windows.
        running: Window of the first stage that the model last ran with, where tables tell it.
        config: The config.json that belongs to the file, or {}.
    """

    format: str
    prefix: str
    state: StateDict
    head: StateDict = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    windows: dict[int, Pair] = field(default_factory=dict)
    told_by: str = ''
    running: Pair | None = None
    config: dict = field(default_factory=dict)

    def may_lack(self, norm: str) -> bool:
        """Whether a file of this format may be without an output norm, ``'norm0'`` to ``'norm3'``.

        A classifier has only the last; some headless models have none.
        """
        fmt = FORMATS[self.format]
        bare = not (fmt.prefix and self.prefix.endswith(fmt.prefix))
        return norm != 'norm3' or (fmt.bare_lacks_norm and bare)

    def in_file(self, key: str) -> str:
        """What the file calls a parameter of the backbone, or would."""
        return self.prefix + ', '.join(FORMATS[self.format].their_names(key))


def to_backbone(content: Mapping, source: str, prefix: str | None = None) -> Converted:
    """Find out the format of a checkpoint and convert it to the backbone's names.

    Args:
        content: What the file holds: a state dict, bare or wrapped in 'model' or 'state_dict'.
        source: Where it came from, for messages.
        prefix: If given, only keys that start with it are used, without it.

    Raises:
        CheckpointError: If no format fits, a key is in no map, a parameter is no finite
            floating-point tensor, or the geometry in the file is nonsense.
    """
    try:
        state, left_aside = _unwrap(content)
        metadata = state._metadata
        if prefix is None:
            found = _convert(state, *_recognize(state))
            found.dropped.extend(left_aside)
            return _noted(found, metadata)
        prefix = prefix if prefix.endswith('.') or not prefix else prefix + '.'
        inner = {
            key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)
        }
        if not inner:
            raise CheckpointError(
                f"no key starts with prefix='{prefix}'; it has {name_keys(state)}"
            )
        found = _convert(inner, *_recognize(inner))
        outside = [key for key in state if not key.startswith(prefix)]
        return _noted(
            replace(
                found,
                prefix=prefix + found.prefix,
                dropped=[*(prefix + key for key in found.dropped), *outside, *left_aside],
            ),
            metadata,
        )
    except CheckpointError as error:
        raise CheckpointError(f'checkpoint {source}: {error}') from None


def _noted(converted: Converted, metadata: Mapping | None) -> Converted:
    """`converted`, with the windows that the metadata notes, if its tables tell none."""
    windows = converted.windows or windows_from_metadata(metadata, converted.prefix)
    return replace(
        converted, windows=windows, told_by=converted.told_by or (METADATA_KEY if windows else '')
    )


def describe_arch(state: Mapping) -> str:
    """The architecture that weights under the backbone's names belong to."""
    arch = arch_of(state)
    for name, known in ARCHITECTURES.items():
        if arch == {key: known[key] for key in arch}:
            return f"'{name}'"
    return f'a model of {arch}'


def arch_of(state: Mapping) -> dict:
    """``embed_dims, depths, num_heads`` of weights under the backbone's names, as far as told."""
    depths, heads = [0] * NUM_STAGES, [0] * NUM_STAGES
    for key, value in state.items():
        parts = key.split('.')
        if parts[0] == 'layers' and parts[2] == 'blocks':
            stage = int(parts[1])
            depths[stage] = max(depths[stage], int(parts[3]) + 1)
            if parts[-1] == 'logit_scale' and value.ndim:
                heads[stage] = value.shape[0]
    arch = dict(depths=tuple(depths), num_heads=tuple(heads))
    stem = state.get('patch_embed.norm.weight')
    return arch if stem is None else dict(embed_dims=stem.numel(), **arch)


def name_keys(keys: Mapping | list[str]) -> str:
    """Up to ten keys for a message, and how many there are."""
    keys = [str(key) for key in keys]
    more = f', ... ({len(keys)} in all)' if len(keys) > _NAMED_KEYS else ''
    return ', '.join(keys[:_NAMED_KEYS]) + more if keys else 'no keys'


def _unwrap(content: Mapping) -> tuple[Mapping, list[str]]:
    """The state dict in what a file holds, without the marks that wrappers of torch leave in keys.

    Also the names of what else holds such weights and is left aside (averaged ones).
    """
    nested = {
        key: value
        for key, value in content.items()
        if isinstance(value, Mapping) and _has_network(value)
    }
    wrapper = next((key for key in (*_WRAPPERS, *nested) if key in nested), None)
    if wrapper not in _WRAPPERS and len(nested) > 1:
        raise CheckpointError(
            f'holds several sets of weights: {name_keys(nested)}; write the '
            'one that is meant to a file of its own'
        )
    if wrapper is None:
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    state = content if wrapper is None else content[wrapper]
    others = [key for key in state if not isinstance(key, str)]
    if others:
        raise CheckpointError(f'has keys that are no names: {name_keys(others)}')
    cleaned = OrderedDict((_without_marks(key), value) for key, value in state.items())
    if len(cleaned) < len(state):
        raise CheckpointError('has keys that differ in nothing but a wrapper of torch')
    cleaned._metadata = {
        _without_marks(f'{key}.').rstrip('.'): value
        for key, value in (getattr(state, '_metadata', None) or {}).items()
    }
    return cleaned, [key for key in nested if key != wrapper]


def _has_network(state: Mapping) -> bool:
    return any(network in str(key) for key in state for network in _NETWORKS)


def _without_marks(key: str) -> str:
    return _MARKS.sub('', key)


def _recognize(state: Mapping) -> tuple[Format, str]:
    """The format and prefix under which most keys are known."""
    known, networks = Counter(), set()
    for key in state:
        for fmt in FORMATS.values():
            for before, rule, _, _ in fmt.find(key, to_ours=True):
                known[fmt.name, before] += 1
                if '.cpb_mlp.' in rule.ours[0].text:
                    networks.add((fmt.name, before))
    # Norms and linear layers go by these names in many models; the CPB network is SwinV2's alone.
    if not networks:
        raise CheckpointError(f'{_likely_cause(state)} It has {name_keys(state)}.')
    prefixes = sorted({before for _, before in networks})
    if len(prefixes) > 1:
        raise CheckpointError(
            'holds several SwinV2 models; say which in init_cfg, with prefix= '
            'one of ' + ', '.join(map(repr, prefixes))
        )
    name = max(
        (name for name in FORMATS if (name, prefixes[0]) in networks),
        key=lambda name: known[name, prefixes[0]],
    )
    return FORMATS[name], prefixes[0]


def _likely_cause(state: Mapping) -> str:
    if any(key.endswith('relative_position_bias_table') for key in state):
        return (
            'this is a Swin Transformer V1 file (relative_position_bias_table); V2 cannot use '
            'its weights.'
        )
    return 'not a SwinV2 file: it has no continuous position bias (cpb_mlp).'


def _convert(state: Mapping, fmt: Format, prefix: str) -> Converted:
    inner = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    outer = {key: value for key, value in state.items() if not key.startswith(prefix)}
    _check_tensors(inner, prefix)
    native, unknown = translate(inner, fmt, to_ours=True)
    if unknown:
        raise CheckpointError(
            f'({fmt.name} format) has keys that this format does not know: '
            f'{name_keys([prefix + key for key in unknown])}. Is it damaged, or '
            'of another model?'
        )
    ballast = [
        key
        for key in native
        if key.startswith('head.') or key == 'mask_token' or key.endswith(OFFICIAL_BUFFERS)
    ]
    dropped = [prefix + name for key in ballast for name in fmt.their_names(key)] + list(outer)
    head = {key: native[key] for key in ballast if key.startswith('head.')}
    if prefix and fmt.prefix:
        head = _head_outside(outer, fmt, prefix)
    kept = {key: value for key, value in native.items() if key not in ballast}
    windows = windows_from_tables(native)
    return Converted(
        fmt.name,
        prefix,
        kept,
        head,
        dropped,
        windows,
        OFFICIAL_BUFFERS[0] if windows else '',
        running_window(native),
    )


def _head_outside(rest: Mapping, fmt: Format, prefix: str) -> StateDict:
    """The classifier that stands beside the backbone, not in it."""
    parent = prefix[:-1].rpartition('.')[0]
    before = parent + '.' if parent else ''
    ours, theirs = fmt.head.ours[0], fmt.head.theirs[0]
    matches = {key: theirs.match(key) for key, value in rest.items() if isinstance(value, Tensor)}
    return {
        ours.fill(found[1]): rest[key]
        for key, found in matches.items()
        if found and found[0] == before
    }


def _check_tensors(state: Mapping, prefix: str) -> None:
    """Parameters must be plain, floating-point and finite; buffers of geometry, plain."""
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f'{prefix}{key} is a {type(value).__name__}, not a tensor')
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = 'meta' if value.is_meta else 'quantized' if value.is_quantized else value.layout
            raise CheckpointError(f'{prefix}{key} is a {kind} tensor, not a dense one')
        if not value.is_floating_point() and not key.endswith(OFFICIAL_BUFFERS):
            raise CheckpointError(f'{prefix}{key} is {value.dtype}, not floating point')
    # Parameters are float32, or finer where the file is: what overflows there is not finite either.
    broken = [
        prefix + key
        for key, value in state.items()
        if not key.endswith(OFFICIAL_BUFFERS) and not value.float().isfinite().all()
    ]
    if broken:
        raise CheckpointError(f'NaN or infinity in {name_keys(broken)}')
