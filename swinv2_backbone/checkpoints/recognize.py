"""What a file holds: the state dict in it, its format, and the prefix before the names."""

import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .errors import CheckpointError, list_keys
from .formats import FORMATS
from .key_rules import Format
from .pretrained_windows import get_metadata

_WRAPPERS = ('model', 'state_dict')
# What torch.compile, activation checkpointing and FSDP insert into names.
_MARKS = re.compile(r'\b(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.')
# Norms and linear layers have the same names in many models; the CPB network is SwinV2's alone.
_CPB = 'layers.{i}.blocks.{j}.attn.cpb_mlp.{c}.{p}'
_CPB_NAMES = {
    str(names[_CPB]).split('.')[-3]
    for fmt in FORMATS.values()
    for names in (fmt.names, fmt.older_names)
    if _CPB in names
}


class Unwrapped(NamedTuple):
    """The state dict in a file.

    Attributes:
        state: Tensors by name, without the marks that wrappers of torch leave in names.
        metadata: What torch keeps beside them, by module path.
        left_aside: Names of further state dicts in the file (averaged weights).
    """

    state: Mapping[str, Any]
    metadata: Mapping[str, Any]
    left_aside: list[str]


def unwrap(content: Mapping) -> Unwrapped:
    """Find the state dict in what a file holds.

    Raises:
        CheckpointError: If there are several equally likely ones, or keys are not strings.
    """
    nested = {
        key: value
        for key, value in content.items()
        if isinstance(value, Mapping) and _has_cpb(value)
    }
    wrapper = next((key for key in (*_WRAPPERS, *nested) if key in nested), None)
    if wrapper not in _WRAPPERS and len(nested) > 1:
        raise CheckpointError(
            f'holds several sets of weights: {list_keys(nested)}; write the '
            'one that is meant to a file of its own'
        )
    if wrapper is None:
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    state = content if wrapper is None else content[wrapper]
    others = [key for key in state if not isinstance(key, str)]
    if others:
        raise CheckpointError(f'has keys that are not strings: {list_keys(others)}')
    cleaned = OrderedDict((_MARKS.sub('', key), value) for key, value in state.items())
    if len(cleaned) < len(state):
        raise CheckpointError('has keys that differ only by the mark of a wrapper of torch')
    metadata = {
        _MARKS.sub('', f'{key}.').rstrip('.'): value for key, value in get_metadata(state).items()
    }
    return Unwrapped(cleaned, metadata, [key for key in nested if key != wrapper])


def _has_cpb(state: Iterable) -> bool:
    return any(name in str(key) for key in state for name in _CPB_NAMES)


def recognize(state: Mapping[str, Any]) -> tuple[Format, str]:
    """The format that matches most keys, and the prefix before its names.

    Raises:
        CheckpointError: If no format matches, or there are several models.
    """
    matches: Counter = Counter()
    with_cpb = set()
    for key in state:
        for fmt in FORMATS.values():
            for prefix, rule, _, _ in fmt.find(key, to_ours=True):
                matches[fmt.name, prefix] += 1
                if rule.ours[0] and rule.ours[0].text == _CPB:
                    with_cpb.add((fmt.name, prefix))
    if not with_cpb:
        raise CheckpointError(f'{_likely_cause(state)} It has {list_keys(state)}.')
    prefixes = sorted({prefix for _, prefix in with_cpb})
    if len(prefixes) > 1:
        raise CheckpointError(
            'holds several SwinV2 models; choose one in init_cfg, with prefix= '
            'one of ' + ', '.join(map(repr, prefixes))
        )
    prefix = prefixes[0]
    candidates = [name for name in FORMATS if (name, prefix) in with_cpb]
    return FORMATS[max(candidates, key=lambda name: matches[name, prefix])], prefix


def _likely_cause(state: Mapping[str, Any]) -> str:
    if any(key.endswith('relative_position_bias_table') for key in state):
        return (
            'this is a Swin Transformer V1 file (relative_position_bias_table); V2 cannot use '
            'its weights.'
        )
    return 'not a SwinV2 file: it has no continuous position bias (cpb_mlp).'
