"""Finding mistakes in a config before they are silently ignored or end in a traceback."""

import difflib
import inspect
from collections.abc import Iterable
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import (
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    TRANSFORMS,
)
from mmengine.runner import Runner

from swinv2_backbone.optim import MMENGINE_KEYS, RATE

_REGISTRIES = (MODELS, DATASETS, TRANSFORMS, METRICS, HOOKS, LOOPS, OPTIMIZERS, OPTIM_WRAPPERS)
# Keys that no signature shows.
_ALSO_READ = {
    '': (
        'auto_scale_lr',
        'model_wrapper_cfg',
        'find_unused_parameters',
        'sync_bn',
        'compile',
        'activation_checkpointing',
        'runner_type',
        'tta_model',
        'tta_pipeline',
    ),
    # AmpOptimWrapper's, which --amp puts in the place of OptimWrapper.
    'optim_wrapper': ('constructor', 'paramwise_cfg', 'dtype', 'loss_scale', 'use_fsdp'),
    'optim_wrapper.paramwise_cfg': (*MMENGINE_KEYS, RATE),
}


class UserError(Exception):
    """A mistake of the user's: shown as one line, without a traceback."""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """ " (did you mean 'x'?)", or nothing if no candidate is close."""
    close = difflib.get_close_matches(name, [str(c) for c in candidates], n=1)
    return f" (did you mean '{close[0]}'?)" if close else ''


def runner_keys() -> list[str]:
    """The top-level keys that mmengine and the toolboxes read from a config."""
    return [*inspect.signature(Runner).parameters, *_ALSO_READ['']]


def check_top_level(cfg: Config, path: Path) -> None:
    """Refuse a key that is a misspelling of one of the runner's, which would ignore it."""
    known = runner_keys()
    # `train_pipeline` is no misspelling of `tta_pipeline`.
    candidates = [key for key in known if not key.startswith('tta_')]
    for key in cfg:
        close = difflib.get_close_matches(key, candidates, n=1, cutoff=0.85)
        if key not in known and close and key != close[0] + 's':
            # `models` beside `model` is a variable of the config's author.
            raise UserError(f"config '{path}': unknown key '{key}' (did you mean '{close[0]}'?)")


def check_override(cfg: Config, dotted: str) -> None:
    """Refuse an override that would only add a key that nothing reads.

    At the top level the keys are known. Below, new keys are common (an argument that the config
    leaves at its default), so only a near miss is refused: a name that is none of those known at
    its place, and nearly one of them. Arguments that a class does not take end the set-up later.

    Raises:
        UserError: If a part of the key does not exist where it must, or is a misspelling.
    """
    node, done = cfg, []
    for part in dotted.split('.'):
        where = '.'.join(done)
        if isinstance(node, (list, tuple)):
            if not part.isdigit() or int(part) >= len(node):
                raise UserError(
                    f"--cfg-options: '{dotted}': '{where}' is a list of {len(node)}; "
                    f"'{part}' is no index of it"
                )
            node = node[int(part)]
        elif node is not None and not isinstance(node, (dict, Config)):
            raise UserError(f"--cfg-options: '{dotted}': '{where}' is no dict but {node!r}")
        elif node is None or part not in node:
            known = _known_keys(cfg, node or {}, where)
            close = difflib.get_close_matches(part, known, n=1, cutoff=0.8)
            if part not in known and (close or not done):
                raise UserError(
                    f"--cfg-options: '{dotted}': unknown key '{part}'" + did_you_mean(part, known)
                )
            return
        else:
            node = node[part]
        done.append(part)


def _known_keys(cfg: Config, node: dict, where: str) -> list[str]:
    """What may stand at a place of the config: what does, and what is known to be read there."""
    if not where:
        return [*node, *runner_keys()]
    return [*node, *_parameters(node, cfg.get('default_scope')), *_ALSO_READ.get(where, ())]


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
                hint = (
                    'run `make data/shapes`'
                    if 'shapes' in path.parts
                    else 'see "Data" in README.md, or set its data_root'
                )
                raise UserError(f"data '{path}' not found ({loader} of the config): {hint}")


def _data_paths(dataset: ConfigDict) -> Iterable[Path]:
    inner = dataset.get('dataset') or dataset.get('datasets')
    if inner:  # RepeatDataset, ConcatDataset and the like
        for one in inner if isinstance(inner, (list, tuple)) else [inner]:
            yield from _data_paths(one)
        return
    root = Path(dataset.get('data_root') or '')
    if '://' in str(dataset.get('data_root')):  # a remote store, which mmengine reads
        return
    if dataset.get('data_root'):
        yield root
    prefix = dataset.get('data_prefix') or {}
    for part in (
        dataset.get('ann_file'),
        *(prefix.values() if isinstance(prefix, dict) else [prefix]),
    ):
        if part and '://' not in str(part):
            yield root / part
