"""What `train.py` and `test.py` share: options, config, and errors on one line."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from swinv2_backbone.compat import allow_mmengine_checkpoints
from tools.config_checks import UserError, check_override, check_top_level, did_you_mean

TRACEBACK_VARIABLE = 'SWINV2_TRACEBACK'
TOOLBOXES = ('mmdet', 'mmseg')


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
    if cfg.get('default_scope') not in TOOLBOXES:
        raise UserError(f"config '{path}': default_scope: got {cfg.get('default_scope')!r}, "
                        f'allowed: {" or ".join(map(repr, TOOLBOXES))}')
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


class SetupGuard(Hook):
    """Knows whether the set-up is over, and refuses a checkpoint that does not fit.

    mmengine loads what matches and warns of the rest; a test of the wrong checkpoint would then
    report the scores of random weights.

    Args:
        whole: Whether the checkpoint must have every parameter of the model and no other.
    """

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.started = False

    def before_train(self, runner: Runner) -> None:
        self.started = True

    before_test = before_train

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        own = set(model.state_dict())
        given = {key.removeprefix('module.') for key in checkpoint.get('state_dict', checkpoint)}
        if self.whole and own != given:
            raise UserError("the checkpoint does not fit the config's model: it lacks "
                            f'{_name_keys(own - given)} and has, of no use here, '
                            f'{_name_keys(given - own)}')


def _name_keys(keys: set[str]) -> str:
    first = ', '.join(sorted(keys)[:3])
    return f'{len(keys)} parameters' + (f' ({first}, ...)' if len(keys) > 3 else
                                        f' ({first})' if keys else '')


def execute(cfg: Config, work: Callable[[Runner], object], whole_checkpoint: bool) -> object:
    """Build a runner and let it work; set-up errors become a :class:`UserError`.

    Until the first batch, an exception is almost always about what the user asked for (a wrong
    key, a class that does not exist, a file that does not fit), and its message says it all. After
    it, the traceback matters.
    """
    allow_mmengine_checkpoints()
    guard = SetupGuard(whole_checkpoint)
    try:
        runner = Runner.from_cfg(cfg)
        # One line for each parameter would bury what matters.
        runner.logger.addFilter(lambda r: not str(r.msg).startswith('paramwise_options'))
        runner.register_hook(guard, priority='LOWEST')
        return work(runner)
    except UserError:
        raise
    except Exception as error:
        if guard.started or os.environ.get(TRACEBACK_VARIABLE):
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
