"""Rules that pair names of ours with names of another library, read in both directions.

- ``{i}`` is a stage, ``{d}`` one of the three mergings, ``{j}`` a block, ``{n}`` an output norm,
  ``{c}`` a layer of the CPB network, ``{p}`` weight or bias; ``{2i+1}`` stands for that number.
- Several names on a side are one tensor cut into equal parts along its first axis; None is a part
  that the other side does not have because it is zero (the bias of the keys).
- :class:`Columns` says that theirs has the columns of the matrix in another order.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import CheckpointError

StateDict = dict[str, Tensor]

# What a placeholder may stand for.
_KINDS = {'i': range(4), 'n': range(4), 'd': range(3), 'c': (0, 2), 'j': range(1000)}
_FIELD = re.compile(r'\{(\d*)([a-z])(?:\+(\d+))?\}')


class Template:
    """A name with placeholders, to be recognized and to be filled in."""

    def __init__(self, text: str):
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

    def match(self, key: str) -> tuple[str, tuple] | None:
        """What stands in front of the name in `key`, and the values of its placeholders."""
        found = self._regex.fullmatch(key)
        if found is None:
            return None
        prefix, *texts = found.groups()
        values = []
        for (factor, name, offset), text in zip(self._fields, texts, strict=True):
            if name == 'p':
                values.append((name, text))
                continue
            value, rest = divmod(int(text) - int(offset or 0), int(factor or 1))
            if rest or value not in _KINDS[name]:
                return None
            values.append((name, value))
        return prefix, tuple(sorted(values))

    def fill(self, values: tuple) -> str:
        """The name for the values of its placeholders."""
        known = dict(values)

        def field(match: re.Match) -> str:
            factor, name, offset = match.groups()
            if name == 'p':
                return known[name]
            return str(int(factor or 1) * known[name] + int(offset or 0))

        return _FIELD.sub(field, self.text)


@dataclass(frozen=True)
class Columns:
    """A matrix whose columns the other library has in another order.

    Attributes:
        name: Its name there.
        order: Of a number of columns, which of ours stands at each place of theirs.
    """

    name: str
    order: Callable[[int], Tensor]


@dataclass(frozen=True)
class Rule:
    """One pair of a map: names of ours, names of theirs, order of columns."""

    ours: tuple[Template | None, ...]
    theirs: tuple[Template | None, ...]
    order: Callable[[int], Tensor] | None = None

    @classmethod
    def of(cls, ours: str | tuple, theirs: 'str | tuple | Columns') -> 'Rule':
        """A rule as it is written in a map."""
        order = None
        if isinstance(theirs, Columns):
            theirs, order = theirs.name, theirs.order
        sides = [(side,) if isinstance(side, str) else side for side in (ours, theirs)]
        return cls(*(tuple(name and Template(name) for name in side) for side in sides), order)

    def sides(self, to_ours: bool) -> tuple[tuple, tuple]:
        """What is read and what is written."""
        return (self.theirs, self.ours) if to_ours else (self.ours, self.theirs)

    def apply(self, parts: list[Tensor | None], to_ours: bool) -> list[Tensor | None]:
        """The tensors of one side, made from those of the other.

        Raises:
            ValueError: If their shapes do not allow it.
        """
        _, written = self.sides(to_ours)
        present = next(part for part in parts if part is not None)
        if self.order is not None:
            if present.ndim != 2 or present.shape[1] % 4:
                raise ValueError(f'has shape {tuple(present.shape)}, not (2C, 4C)')
            order = self.order(present.shape[1])
            return [present[:, order.argsort() if to_ours else order]]
        if len(parts) == len(written) == 1:
            return [present]
        if any(part is not None and part.shape != present.shape for part in parts):
            raise ValueError(
                'have different shapes: '
                + ', '.join(str(tuple(part.shape)) for part in parts if part is not None)
            )
        whole = torch.cat([torch.zeros_like(present) if part is None else part for part in parts])
        if whole.ndim == 0 or whole.shape[0] % len(written):
            raise ValueError(f'has shape {tuple(whole.shape)}, which has no {len(written)} parts')
        return [part.clone() for part in whole.chunk(len(written))]


@dataclass(frozen=True)
class Format:
    """How one library names, nests and lays out the weights.

    Attributes:
        name: As in messages and on the command line.
        rules: Its map.
        head: Its name of the classifier's two parameters.
        prefix: What a classifier of that library puts in front of the names of the map. Where
            there is one, the head stands outside of it.
        buffers: Geometry that its own models save among the weights.
        flat_index: Whether relative_position_index is flat there.
        wrapper: Under which key its files hold the weights.
        shrinks: Whether its geometry is that of windows which have shrunk to the map.
        bare_lacks_norm: Whether it has models without prefix that lack the final norm.
    """

    name: str
    rules: tuple[Rule, ...]
    head: Rule
    prefix: str = ''
    buffers: frozenset[str] = frozenset()
    flat_index: bool = False
    wrapper: str | None = None
    shrinks: bool = True
    bare_lacks_norm: bool = False

    def find(self, key: str, to_ours: bool) -> Iterable[tuple[str, Rule, int, tuple]]:
        """The rules that know a key: what precedes the name, rule, part and values."""
        for rule in self.rules if self.prefix else (*self.rules, self.head):
            read, _ = rule.sides(to_ours)
            for part, template in enumerate(read):
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
    """Rename and re-lay tensors, in either direction.

    Args:
        state: Tensors by name, without prefix.
        fmt: The format to come from or to go to.
        to_ours: The direction.

    Returns:
        The tensors under their new names, and the keys that no rule knows.

    Raises:
        CheckpointError: If one of several parts is missing, or shapes do not fit together.
    """
    groups: dict = {}
    unknown = []
    for key in state:
        for prefix, rule, part, values in fmt.find(key, to_ours):
            if not prefix:
                groups.setdefault((rule, values), {})[part] = key
                break
        else:
            unknown.append(key)
    result = {}
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
        try:
            tensors = rule.apply(
                [state[keys[part]] if part in keys else None for part in range(len(read))], to_ours
            )
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
