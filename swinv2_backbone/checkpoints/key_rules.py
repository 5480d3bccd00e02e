"""The notation of :mod:`.formats`: pairs of names, ours and another library's, read both ways.

A name is written with placeholders::

    {i}  stage, 0 to 3                 {n}  output norm, 0 to 3
    {j}  block of the stage            {c}  layer of the CPB network, 0 or 2
    {d}  patch merging, 0 to 2         {p}  'weight' or 'bias'

``{2i+1}`` stands for that number. One of the two sides may be a tuple of names: the tensor of the
other side is then cut into equal parts along its first axis, one for each name. A part that is
None has no name because it is zero (the bias of the keys). :class:`Unfolded` stands for a matrix
whose columns the other library keeps in another order.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .errors import CheckpointError

StateDict = dict[str, Tensor]
# Values of the placeholders of a name, sorted.
Values = tuple[tuple[str, str], ...]

_RANGES: Mapping = {'i': range(4), 'n': range(4), 'd': range(3), 'c': (0, 2), 'j': range(1000)}
_FIELD = re.compile(r'\{(\d*)([a-z])(?:\+(\d+))?\}')


class Template:
    """A name with placeholders, to match keys with and to fill in."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._fields = _FIELD.findall(text)
        literals = _FIELD.split(text)[::4]
        groups = [
            r'(weight|bias)' if name == 'p' else r'(0|[1-9]\d*)' for _, name, _ in self._fields
        ]
        pairs = zip(literals, [*groups, ''], strict=True)
        self._regex = re.compile(
            r'((?:.*\.)?)' + ''.join(re.escape(literal) + group for literal, group in pairs),
            re.ASCII,
        )

    def match(self, key: str) -> tuple[str, Values] | None:
        """The prefix before the name in `key` and the values of its placeholders, or None."""
        found = self._regex.fullmatch(key)
        if found is None:
            return None
        prefix, *texts = found.groups()
        values = []
        for (factor, name, offset), text in zip(self._fields, texts, strict=True):
            if name != 'p':
                value, rest = divmod(int(text) - int(offset or 0), int(factor or 1))
                if rest or value not in _RANGES[name]:
                    return None
                text = str(value)
            values.append((name, text))
        return prefix, tuple(sorted(values))

    def fill(self, values: Values) -> str:
        """The name for the given values of its placeholders."""
        given = dict(values)

        def field_text(match: re.Match) -> str:
            factor, name, offset = match.groups()
            value = given[name]
            return value if name == 'p' else str(int(factor or 1) * int(value) + int(offset or 0))

        return _FIELD.sub(field_text, self.text)


class Unfolded(str):
    """The name of a matrix with columns (channel, row, column); ours: (column, row, channel)."""


Name = str | tuple[str | None, ...]


@dataclass(frozen=True, eq=False)
class Rule:
    """One pair of names, compiled."""

    ours: tuple[Template | None, ...]
    theirs: tuple[Template | None, ...]
    unfolded: bool = False  # Whether theirs is Unfolded.

    @classmethod
    def of(cls, ours: Name, theirs: Name) -> 'Rule':
        """A rule from a pair as it is written in :mod:`.formats`."""
        return cls(_templates(ours), _templates(theirs), isinstance(theirs, Unfolded))

    def sides(self, to_ours: bool) -> tuple[tuple, tuple]:
        """The templates that are read and those that are written."""
        return (self.theirs, self.ours) if to_ours else (self.ours, self.theirs)

    def apply(self, parts: list[Tensor | None], to_ours: bool) -> list[Tensor]:
        """The tensors of one side, made from those of the other.

        Raises:
            ValueError: If their shapes do not allow it.
        """
        written = self.sides(to_ours)[1]
        present = [part for part in parts if part is not None]
        first = present[0]
        if self.unfolded:
            if first.ndim != 2 or first.shape[1] % 4:
                raise ValueError(f'has shape {tuple(first.shape)}, allowed: (2C, 4C)')
            order = torch.arange(first.shape[1]).view(2, 2, -1).permute(2, 1, 0).flatten()
            return [first[:, order.argsort() if to_ours else order]]
        if len(parts) == len(written) == 1:
            return [first]
        if any(part.shape != first.shape for part in present):
            shapes = ', '.join(str(tuple(part.shape)) for part in present)
            raise ValueError(f'have different shapes: {shapes}')
        joined = torch.cat([torch.zeros_like(first) if part is None else part for part in parts])
        if joined.ndim == 0 or joined.shape[0] % len(written):
            raise ValueError(
                f'has shape {tuple(joined.shape)}, which has no {len(written)} equal parts'
            )
        return [part.clone() for part in joined.chunk(len(written))]


def _templates(name: Name) -> tuple[Template | None, ...]:
    names = name if isinstance(name, tuple) else (name,)
    return tuple(part if part is None else Template(part) for part in names)


@dataclass(frozen=True, eq=False)
class Format:
    """The names by which one library calls the weights, and what else its files hold.

    Attributes:
        name: As in messages and on the command line.
        names: Its table: names of ours and of theirs.
        head: Their name of the classifier's two parameters.
        older_names: Further pairs, which are read but not written.
        prefix: What a classifier of that library puts before the names of the table. Where there
            is one, the head stands beside it.
        wrapper: Key under which its files hold the weights.
        buffers: Official buffers that its models save among the weights.
        flat_index: Whether ``relative_position_index`` is flat there.
        shrinks_windows: Whether its buffers are those of windows that have shrunk to the map.
        bare_lacks_norm: Whether it has models without prefix that lack the final norm.
        config_json: Whose config.json lies beside its files: 'transformers', 'timm' or ''.
    """

    name: str
    names: Mapping[Name, Name]
    head: str
    older_names: Mapping[Name, Name] = field(default_factory=dict)
    prefix: str = ''
    wrapper: str | None = None
    buffers: tuple[str, ...] = ()
    flat_index: bool = False
    shrinks_windows: bool = True
    bare_lacks_norm: bool = False
    config_json: str = ''

    @cached_property
    def head_rule(self) -> Rule:
        """The pair of names of the classifier's two parameters."""
        return Rule.of('head.{p}', self.head)

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """The table, compiled; where there is no prefix, with the head in it."""
        pairs = [*self.names.items(), *self.older_names.items()]
        rules = tuple(Rule.of(*pair) for pair in pairs)
        return rules if self.prefix else (*rules, self.head_rule)

    @property
    def is_for_one_size(self) -> bool:
        """Whether a file of the format is for one window size and one image size."""
        return bool(self.buffers) or self.config_json == 'transformers'

    def find(self, key: str, to_ours: bool) -> Iterable[tuple[str, Rule, int, Values]]:
        """The rules that match a key: what precedes the name, rule, number of the part, values."""
        for rule in self.rules:
            for part, template in enumerate(rule.sides(to_ours)[0]):
                matched = template and template.match(key)
                if matched:
                    yield matched[0], rule, part, matched[1]

    def their_names(self, key: str) -> list[str]:
        """What a parameter of ours is called there, or its own name if it has none."""
        for prefix, rule, _, values in self.find(key, to_ours=False):
            if not prefix:
                return [template.fill(values) for template in rule.theirs if template]
        return [key]


def translate(state: Mapping, fmt: Format, to_ours: bool) -> tuple[StateDict, list[str]]:
    """Rename, join, cut and reorder tensors as a format requires, in either direction.

    Args:
        state: Tensors by name, without prefix.
        fmt: The format to come from or to go to.

    Returns:
        The tensors under their new names, and the keys that no rule matches.

    Raises:
        CheckpointError: If one of several parts is missing, or shapes do not fit together.
    """
    groups: dict[tuple[Rule, Values], dict[int, str]] = {}
    unknown = []
    for key in state:
        for prefix, rule, part, values in fmt.find(key, to_ours):
            if not prefix:
                groups.setdefault((rule, values), {})[part] = key
                break
        else:
            unknown.append(key)
    result: StateDict = {}
    for (rule, values), keys in groups.items():
        read, written = rule.sides(to_ours)
        missing = [
            template.fill(values)
            for part, template in enumerate(read)
            if template and part not in keys
        ]
        named = ', '.join(keys.values())
        if missing:
            raise CheckpointError(f'has {named}, but lacks {", ".join(missing)}')
        parts = [state[keys[part]] if part in keys else None for part in range(len(read))]
        try:
            tensors = rule.apply(parts, to_ours)
        except ValueError as error:
            raise CheckpointError(f'{named} {error}. Is it damaged?') from None
        made = {
            template.fill(values): tensor
            for template, tensor in zip(written, tensors, strict=True)
            if template
        }
        if twice := made.keys() & result.keys():
            raise CheckpointError(f'has {", ".join(twice)} twice, once as {named}')
        result |= made
    return result, unknown
