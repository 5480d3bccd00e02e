"""Overrides of a config's variables, from which its settings were made when the file ran.

Of ``data_root = 'data/x'`` and ``train_dataloader = dict(dataset=dict(data_root=data_root))``
mmengine reads the second alone, which is a copy by the time that a command line is merged. So the
files of the config run once more, with the variable set anew after each statement that mentions it.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from mmengine.config import Config
from mmengine.config.utils import RemoveAssignFromAST

from tools.engine.config_checks import top_level_keys
from tools.utils.errors import UserError, first_line

_READ = frozenset((*top_level_keys(), 'custom_imports'))
_NOTHING = object()


def override_variables(cfg: Config, path: Path, overrides: Mapping[str, Any]) -> Config:
    """The config that a file gives with other values of its variables.

    Args:
        cfg: The config that it gives as it is.
        path: The file. Its bases run with these values, too.
        overrides: The value by dotted key, as 'data_root' or 'train_pipeline.2.crop_size'. Keys
            that begin with one that mmengine reads are no variables, and left out.

    Raises:
        UserError: If nothing that is read depends on a variable, or a file fails with its value.
    """
    variables: dict[str, Any] = {}
    for dotted, value in overrides.items():
        if dotted.split('.')[0] in _READ or _get(cfg, dotted) == value:
            continue
        variables[dotted] = value
        try:
            before, cfg = cfg, _run_with(variables, path)
        except Exception as error:  # A config is a program.
            text = f'{type(error).__name__}: {first_line(error)}'
            raise UserError(f"--cfg-options: '{dotted}': with {value!r}: {text}") from error
        if _get(cfg, dotted) != value or all(before.get(key) == cfg.get(key) for key in _READ):
            raise UserError(
                f"--cfg-options: '{dotted}' is a variable of the config, and nothing that is read "
                f'depends on it{_holders(before, _get(before, dotted), dotted)}'
            )
        _check_paths(cfg, dotted, _get(before, dotted), overrides)
    return cfg


def _check_paths(cfg: Config, dotted: str, old: Any, overrides: Mapping[str, Any]) -> None:
    """Refuse a folder that was replaced in one place of a config and is still read in another.

    Such as that of the annotations from which the metric takes the truth.
    """
    if isinstance(old, str) and '/' in old:
        left = [key for key in _same(cfg, old) if key not in overrides]
        if left:
            raise UserError(
                f"--cfg-options: '{dotted}' replaces '{old}', which is still read from "
                f'{", ".join(left)}: set these, too, or a variable that all of them depend on'
            )


def _run_with(variables: Mapping[str, Any], path: Path) -> Config:
    """Run a config file and its bases with other values of variables."""

    class SetAnew(RemoveAssignFromAST):  # mmengine passes each file's statements through it.
        def visit(self, node: ast.AST) -> Any:
            kept = super().visit(node)
            mentioned = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
            lines = [
                line
                for dotted, value in variables.items()
                if dotted.split('.')[0] in mentioned
                for line in _assignment(dotted, value)
            ]
            anew = ast.parse('\n'.join(lines)).body
            return [kept, *anew] if isinstance(kept, ast.stmt) and anew else kept

        def generic_visit(self, node: ast.AST) -> ast.AST:
            blocks = (ast.Module, ast.If, ast.For, ast.While, ast.With, ast.Try, ast.ExceptHandler)
            return super().generic_visit(node) if isinstance(node, blocks) else node

    with mock.patch('mmengine.config.config.RemoveAssignFromAST', SetAnew):
        return Config.fromfile(path)


def _assignment(dotted: str, value: Any) -> list[str]:
    """Lines of Python that set a variable, or a part of it, in a file that has it."""
    name, *parts = dotted.split('.')
    keys = [name, *(int(part) if part.isdigit() else part for part in parts)]
    target = 'globals()' + ''.join(f'[{key!r}]' for key in keys)
    return [
        f'if {name!r} in globals():',
        f'    try: {target} = {value!r}',
        # The variable of a base may be shorter than that of its child.
        '    except (IndexError, KeyError, TypeError): pass',
    ]


def _get(node: Any, dotted: str) -> Any:
    """What is at a dotted key of a config."""
    for part in dotted.split('.'):
        try:
            node = node[int(part) if isinstance(node, (list, tuple)) else part]
        except (IndexError, KeyError, TypeError, ValueError):
            return _NOTHING
    return node


def _holders(cfg: Config, value: Any, dotted: str) -> str:
    """For a message: where a value is read; if possible, under the last name of a dotted key."""
    same = _same(cfg, value)
    same = [key for key in same if key.split('.')[-1] == dotted.split('.')[-1]] or same
    return f'; the same value is read from {", ".join(same)}' if same else ''


def _same(cfg: Config, value: Any) -> list[str]:
    """Dotted keys that are read and have a value or, if it is a folder, a path inside it."""
    inside = value.rstrip('/') + '/' if isinstance(value, str) else None
    return [
        key
        for key, found in _items({key: cfg[key] for key in cfg if key in _READ})
        if found == value or (inside and isinstance(found, str) and found.startswith(inside))
    ]


def _items(node: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of everything inside a config."""
    if isinstance(node, (dict, list, tuple)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield f'{prefix}{key}', value
            yield from _items(value, f'{prefix}{key}.')
