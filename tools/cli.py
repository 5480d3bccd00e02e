"""What `train.py` and `test.py` share: options, config, and errors on one line."""

import argparse
import difflib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.hooks import Hook
from mmengine.model import revert_sync_batchnorm
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

from swinv2_backbone.compat import allow_mmengine_checkpoints

TRACEBACK_VARIABLE = 'SWINV2_TRACEBACK'
_REGISTRIES = (MODELS, DATASETS, TRANSFORMS, METRICS, HOOKS, OPTIMIZERS, OPTIM_WRAPPERS)


class UserError(Exception):
    """A mistake of the user's: shown as one line, without a traceback."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line."""

    def error(self, message: str) -> None:
        option = message.removeprefix('unrecognized arguments: ').split()[0]
        if message.startswith('unrecognized'):
            hint = did_you_mean(option, self._option_string_actions)
            message = f"unknown option '{option}'{hint}"
        self.exit(2, f'{self.prog}: error: {message}; see --help\n')


class CfgOptions(DictAction):
    """`--cfg-options key=value ...`, checked to have that form."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            if '=' not in value:
                parser.error(f"--cfg-options: got '{value}', allowed: key=value")
        super().__call__(parser, namespace, values, option_string)


def make_parser(description: str) -> OneLineParser:
    """A parser with the options that both scripts have."""
    parser = OneLineParser(description=description)
    parser.add_argument('--work-dir', help='where logs, checkpoints and results go '
                        '(default: work_dirs/NAME_OF_THE_CONFIG)')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE',
                        help='override settings of the config, e.g. train_dataloader.batch_size=4')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='how the processes of a distributed job are started')
    # torch.distributed.launch passes it; torchrun sets the variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """" (did you mean 'x'?)", or nothing if no candidate is close."""
    close = difflib.get_close_matches(name, [str(c) for c in candidates], n=1)
    return f" (did you mean '{close[0]}'?)" if close else ''


def load_config(args: argparse.Namespace) -> Config:
    """The config of the command line, with its overrides checked and merged.

    Raises:
        UserError: If the file is missing or broken, or an override names no key.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    path = Path(args.config)
    if not path.is_file():
        nearby = [str(p) for p in path.parent.glob('*.py')] if path.parent.is_dir() else []
        raise UserError(f"config '{path}' does not exist{did_you_mean(str(path), nearby)}")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # A config is a program: whatever it raises, it is the config's.
        raise UserError(f"config '{path}': {type(error).__name__}: {first_line(error)}") from error
    check_top_level(cfg, path)
    for key in args.cfg_options or {}:
        check_override(cfg, key)
    cfg.merge_from_dict(args.cfg_options or {})
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / path.stem)
    return cfg


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


def use_checkpoint(cfg: Config, checkpoint: str) -> None:
    """Have a checkpoint loaded.

    Raises:
        UserError: If it is a path at which there is no file.
    """
    if '://' not in checkpoint and not Path(checkpoint).is_file():
        raise UserError(f"checkpoint '{checkpoint}' does not exist; tools/train.py writes its own "
                        f"to '{cfg.work_dir}'")
    cfg.load_from = checkpoint
    # Its weights are about to replace all others: fetching those for the backbone would be in vain.
    if cfg.model.get('backbone', {}).get('init_cfg'):
        cfg.model.backbone.init_cfg = None


def check_data(cfg: Config, *loaders: str) -> None:
    """Refuse to start without the data that the named loaders read.

    Raises:
        UserError: Naming the first path that does not exist, and what to do.
    """
    for loader in loaders:
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


class Started(Hook):
    """Knows whether the set-up is over and the work has begun."""

    def __init__(self) -> None:
        self.started = False

    def before_train(self, runner: Runner) -> None:
        self.started = True

    before_test = before_train


def execute(cfg: Config, work: Callable[[Runner], object]) -> object:
    """Build a runner and let it work; set-up errors become a :class:`UserError`.

    Until the first batch, an exception is almost always about what the user asked for (a wrong
    key, a class that does not exist, a file that does not fit), and its message says it all. After
    it, the traceback matters.
    """
    allow_mmengine_checkpoints()
    hook = Started()
    try:
        runner = Runner.from_cfg(cfg)
        if cfg.launcher == 'none':
            # SyncBN cannot run outside a process group; with one process BN is the same thing.
            runner.model = revert_sync_batchnorm(runner.model)
        runner.register_hook(hook, priority='LOWEST')
        return work(runner)
    except Exception as error:
        if hook.started or os.environ.get(TRACEBACK_VARIABLE):
            raise
        raise UserError(f'{first_line(error)} [{type(error).__name__}; {TRACEBACK_VARIABLE}=1 '
                        'shows where]') from error


def first_line(error: BaseException) -> str:
    """An exception's message on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; a :class:`UserError` ends it with one line and status 2."""
    try:
        main()
    except UserError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        sys.exit(f'{Path(sys.argv[0]).name}: error: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
