"""Checks of a config: mistakes that would be ignored, or whose own error hides the cause."""

import difflib
import inspect
from collections.abc import Iterable
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from tools.data.data_checks import check_categories, local_path
from tools.utils.errors import UserError, did_you_mean

# Top-level keys that mmengine or a toolbox reads, beside the arguments of Runner.
_MORE_KEYS = (
    'auto_scale_lr',
    'model_wrapper_cfg',
    'shard_optimizer',
    'find_unused_parameters',
    'sync_bn',
    'compile',
    'activation_checkpointing',
    'runner_type',
    'tta_model',
    'tta_pipeline',
)


def top_level_keys() -> list[str]:
    """The top-level keys that mmengine and the toolboxes read from a config."""
    return [*inspect.signature(Runner).parameters, *_MORE_KEYS]


def check_top_level(cfg: Config, path: Path) -> None:
    """Refuse a top-level key that is a misspelling of one that mmengine reads.

    Raises:
        UserError: Naming the key and the one it resembles.
    """
    known = top_level_keys()
    # `train_pipeline` is no misspelling of `tta_pipeline`.
    candidates = [key for key in known if not key.startswith('tta_')]
    for key in cfg:
        close = difflib.get_close_matches(key, candidates, n=1, cutoff=0.85)
        # `models` beside `model` is a variable of the config's author.
        if key not in known and close and key != close[0] + 's':
            raise UserError(f"config '{path}': unknown key '{key}' (did you mean '{close[0]}'?)")


def check_override(cfg: Config, dotted: str) -> None:
    """Refuse an override of a key that nothing reads.

    The top-level keys are known. Below them a new key is common (an argument that the config leaves
    at its default), so only a misspelling of a key beside it is refused. An argument that a class
    does not take is refused by the class.

    Raises:
        UserError: If a part of the key is a misspelling, or cannot be inside the part before it.
    """
    parts, node = dotted.split('.'), cfg
    for index, part in enumerate(parts):
        where = f"--cfg-options: '{dotted}': '{'.'.join(parts[:index])}'"
        if isinstance(node, (list, tuple)):
            if not part.isdigit() or int(part) >= len(node):
                raise UserError(f"{where} is a list of {len(node)}; '{part}' is no index of it")
            node = node[int(part)]
        elif not isinstance(node, (dict, Config)):
            if node is None:  # Replaced by a dict with this key.
                return
            raise UserError(f'{where} is no dict but {node!r}')
        elif part in node:
            node = node[part]
        else:
            known = [key for key in node if key != 'type']  # `dtype` is no misspelling of it.
            known += [] if index else top_level_keys()
            if part not in known and (not index or difflib.get_close_matches(part, known, 1, 0.85)):
                raise UserError(
                    f"--cfg-options: '{dotted}': unknown key '{part}'{did_you_mean(part, known)}"
                )
            return


def check_data(cfg: Config, *loaders: str) -> None:
    """Refuse to start without the data that some data loaders read, or with other classes.

    Raises:
        UserError: Naming the first path that does not exist, and how to get the data, or the
            classes; see :func:`tools.data.data_checks.check_categories`.
    """
    for loader in loaders:
        if not cfg.get(loader):
            raise UserError(f'the config lacks {loader}')
        for dataset in plain_configs(cfg[loader]['dataset']):
            for text in missing_paths(dataset, loader):
                raise UserError(text)
            if cfg.get('default_scope') == 'mmdet':
                check_categories(dataset, loader)


def missing_paths(dataset: ConfigDict, loader: str) -> Iterable[str]:
    """A line for each path of a dataset's config that does not exist, with how to get the data."""
    for path in _data_paths(dataset):
        if not path.exists():
            shapes = 'shapes' in path.parts
            hint = 'see "Data" in docs/usage.md, or set its data_root'
            hint = 'run `make data/shapes`' if shapes else hint
            yield f"data '{path}' not found ({loader} of the config): {hint}"


def plain_configs(dataset: ConfigDict) -> Iterable[ConfigDict]:
    """The datasets inside of RepeatDataset, ConcatDataset and the like, or the dataset itself."""
    inner = dataset.get('dataset') or dataset.get('datasets')
    for one in inner if isinstance(inner, (list, tuple)) else [inner] if inner else []:
        yield from plain_configs(one)
    if not inner:
        yield dataset


def _data_paths(dataset: ConfigDict) -> Iterable[Path]:
    """The local files and folders that a dataset's config names."""
    prefix = dataset.get('data_prefix') or {}
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    parts = [*filter(None, (dataset.get('ann_file'), *prefixes))]
    return [*filter(None, (local_path(dataset, part) for part in ('', *parts)))]
