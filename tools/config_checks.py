"""Finding mistakes in a config before they are silently ignored or end in a traceback."""

import difflib
import inspect
from collections.abc import Iterable
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    TRANSFORMS,
)
from mmengine.runner import Runner

_REGISTRIES = (MODELS, DATASETS, TRANSFORMS, METRICS, HOOKS, OPTIMIZERS, OPTIM_WRAPPERS)


class UserError(Exception):
    """A mistake of the user's: shown as one line, without a traceback."""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """" (did you mean 'x'?)", or nothing if no candidate is close."""
    close = difflib.get_close_matches(name, [str(c) for c in candidates], n=1)
    return f" (did you mean '{close[0]}'?)" if close else ''


def runner_keys() -> list[str]:
    """The top-level keys that mmengine reads from a config."""
    return [*inspect.signature(Runner).parameters, 'auto_scale_lr']


def check_top_level(cfg: Config, path: Path) -> None:
    """Refuse a key that is a misspelling of one of the runner's, which would ignore it."""
    known = runner_keys()
    for key in cfg:
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if key not in known and close:
            raise UserError(f"config '{path}': unknown key '{key}' (did you mean '{close[0]}'?)")


def check_override(cfg: Config, dotted: str) -> None:
    """Refuse an override that would only add a key that nothing reads.

    Raises:
        UserError: If a part of the key does not exist where it must, or is a misspelling.
    """
    node, done = cfg, []
    *parents, leaf = dotted.split('.')
    for part in parents:
        node = _child(node, part, done, dotted)
        done.append(part)
    if isinstance(node, (list, tuple)):
        _child(node, leaf, done, dotted)
    elif isinstance(node, (dict, Config)) and leaf not in node:
        parameters = _parameters(node, cfg.get('default_scope')) if done else []
        allowed = [*node, *parameters] if done else [*node, *runner_keys()]
        # A dict without a type may take keys that it does not have yet; one that is nearly a key
        # that it has is a misspelling all the same.
        strict = not done or bool(parameters)
        hint = did_you_mean(leaf, allowed)
        if leaf not in allowed and (strict or hint):
            raise UserError(f"--cfg-options: '{dotted}': unknown key '{leaf}'{hint}")
    elif not isinstance(node, (dict, Config)):
        raise UserError(f"--cfg-options: '{dotted}': '{'.'.join(done)}' is no dict but {node!r}")


def _child(node: object, part: str, done: list[str], dotted: str) -> object:
    if isinstance(node, (list, tuple)):
        if part.isdigit() and int(part) < len(node):
            return node[int(part)]
        raise UserError(f"--cfg-options: '{dotted}': '{'.'.join(done)}' is a list of {len(node)}; "
                        f"'{part}' is no index of it")
    if isinstance(node, (dict, Config)) and part in node:
        return node[part]
    hint = did_you_mean(part, node) if isinstance(node, (dict, Config)) else ''
    where = f" in '{'.'.join(done)}'" if done else ''
    raise UserError(f"--cfg-options: '{dotted}': no key '{part}'{where}{hint}")


def _parameters(node: dict, scope: str | None) -> list[str]:
    """The arguments of the class that a dict describes; none if it takes any or is unknown."""
    name = node.get('type')
    for registry in _REGISTRIES if isinstance(name, str) else ():
        with registry.switch_scope_and_registry(scope) as scoped:
            cls = scoped.get(name)
        if cls is not None:
            parameters = inspect.signature(cls).parameters.values()
            takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
            return [] if takes_any else ['type', *(p.name for p in parameters)]
    return []


def check_data(cfg: Config, *loaders: str) -> None:
    """Refuse to start without the data that the named loaders read.

    Raises:
        UserError: Naming the first path that does not exist, and what to do.
    """
    for loader in loaders:
        if not cfg.get(loader):
            raise UserError(f'the config lacks {loader}')
        for path in _data_paths(cfg[loader]['dataset']):
            if not path.exists():
                hint = ('run `make data/shapes`' if 'shapes' in path.parts else
                        'see "Data" in README.md, or set its data_root')
                raise UserError(f"data '{path}' not found ({loader} of the config): {hint}")


def _data_paths(dataset: ConfigDict) -> Iterable[Path]:
    inner = dataset.get('dataset') or dataset.get('datasets')
    if inner:  # RepeatDataset, ConcatDataset and the like
        for one in inner if isinstance(inner, (list, tuple)) else [inner]:
            yield from _data_paths(one)
        return
    root = Path(dataset.get('data_root') or '')
    if dataset.get('data_root'):
        yield root
    for part in (dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()):
        if part and '://' not in str(part):
            yield root / part
