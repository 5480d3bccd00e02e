"""What `train.py` and `test.py` share: options, config, and errors on one line."""

import argparse
import importlib
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from swinv2_backbone.compat import allow_mmengine_checkpoints
from tools.utils.config_checks import UserError, check_override, check_top_level, did_you_mean

TRACEBACK_VARIABLE = 'SWINV2_TRACEBACK'
TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')


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
        try:
            super().__call__(parser, namespace, values, option_string)
        except Exception as error:  # DictAction's parser of lists raises many kinds
            parser.error(f'--cfg-options: cannot be read: {first_line(error)}')


def make_parser(description: str) -> OneLineParser:
    """A parser with the options that both scripts have."""
    parser = OneLineParser(description=description)
    parser.add_argument(
        '--work-dir',
        help='where logs, checkpoints and results go (default: work_dirs/NAME_OF_THE_CONFIG)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. train_dataloader.batch_size=4',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed job are started',
    )
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
        raise UserError(
            f"config '{path}': default_scope: got {cfg.get('default_scope')!r}, "
            f'allowed: {" or ".join(map(repr, TOOLBOXES))}'
        )
    require_toolbox(cfg.default_scope, path)
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


def require_toolbox(name: str, path: Path) -> None:
    """Refuse a config whose toolbox cannot be imported: its classes would be said not to exist.

    mmpretrain needs a torchvision whose operators are built for the torch beside it.
    """
    try:
        importlib.import_module(f'{name}.models')
    except Exception as error:  # Versions that do not go together end in all kinds.
        raise UserError(
            f"config '{path}': needs {name}, which cannot be imported here ({first_line(error)})"
        ) from error


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got '{text}', allowed: an integer of at least 1")
    return int(text)


class Window(NamedTuple):
    """An attention window of a command line: its text, and what the backbone takes."""

    text: str
    size: int | tuple[int, int] | list[int | tuple[int, int]]


def window(text: str) -> Window:
    """An argparse type: '16', '8x16' (height x width), or '16,16,16,8' (an entry per stage)."""
    entry = '[1-9][0-9]*(x[1-9][0-9]*)?'
    if not re.fullmatch(f'{entry}(,{entry}){{3}}|{entry}', text):
        raise argparse.ArgumentTypeError(
            f"got '{text}', allowed: a side as 16, HEIGHTxWIDTH as 8x16, or one of these for each "
            'of the four stages as 16,16,16,8, in tokens'
        )
    sides = [[int(side) for side in entry.split('x')] for entry in text.split(',')]
    sizes = [each[0] if len(each) == 1 else tuple(each) for each in sides]
    return Window(text, sizes[0] if len(sizes) == 1 else sizes)


def latest_checkpoint(work_dir: str) -> str | None:
    """The newest whole checkpoint of a work dir.

    mmengine's own search trusts the file `last_checkpoint`; after a kill in the middle of a save
    there may be a later checkpoint than it names, one that is truncated, or nothing in it.
    """
    found = [
        path
        for path in Path(work_dir).glob('*.pth')
        if path.name.startswith(('iter_', 'epoch_')) and zipfile.is_zipfile(path)
    ]
    return str(max(found, key=lambda path: path.stat().st_mtime)) if found else None


def use_checkpoint(cfg: Config, checkpoint: str) -> str:
    """Have a checkpoint loaded: a URL, a file, or the newest of a work dir.

    Returns:
        The path or URL.

    Raises:
        UserError: If there is none.
    """
    if Path(checkpoint).is_dir():
        folder, checkpoint = checkpoint, latest_checkpoint(checkpoint)
        if checkpoint is None:
            raise UserError(f"checkpoint '{folder}': no iter_*.pth or epoch_*.pth in this folder")
    elif '://' not in checkpoint and not Path(checkpoint).is_file():
        raise UserError(
            f"checkpoint '{checkpoint}' does not exist; tools/train.py writes its own "
            f"to '{cfg.work_dir}'"
        )
    cfg.load_from = checkpoint
    return checkpoint


class SetupGuard(Hook):
    """Knows whether the set-up is over, and refuses a checkpoint that does not fit.

    mmengine loads what matches and warns of the rest; a test of the wrong checkpoint would then
    report the scores of random weights.

    Args:
        whole: Whether the checkpoint must have every parameter of the model, in its shape, and no
            other. If not, it must have at least one of them.
    """

    started = False  # Of the process: an exception from now on is no mistake of the user's.

    def __init__(self, whole: bool) -> None:
        self.whole = whole

    def before_train(self, runner: Runner) -> None:
        SetupGuard.started = True

    before_test = before_train

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner.cfg.get('resume') and 'message_hub' not in checkpoint:
            raise UserError(
                'the checkpoint has weights alone, no state of a training that could '
                'go on; to start from its weights, set load_from'
            )
        own = _shapes(bare_model(runner.model).state_dict())
        given = _shapes(checkpoint.get('state_dict', checkpoint))
        if not own & given or (self.whole and own != given):
            raise UserError(
                "the checkpoint does not fit the config's model: it lacks "
                f'{_describe(own - given)} and has, of no use here, '
                f'{_describe(given - own)}'
            )


def bare_model(model: nn.Module) -> nn.Module:
    """The model inside of wrappers for distribution and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _shapes(state: dict) -> set[tuple[str, tuple]]:
    return {
        (str(key).removeprefix('module.'), tuple(getattr(value, 'shape', ())))
        for key, value in state.items()
    }


def _describe(parameters: set[tuple[str, tuple]]) -> str:
    first = ', '.join(f'{name} {shape}' for name, shape in sorted(parameters)[:3])
    more = ', ...' if len(parameters) > 3 else ''
    return f'{len(parameters)} parameters' + (f' ({first}{more})' if parameters else '')


def execute(cfg: Config, work: Callable[[Runner], object], whole_checkpoint: bool) -> object:
    """Build a runner and let it work.

    Args:
        cfg: The config.
        work: What the runner is to do.
        whole_checkpoint: Whether the checkpoint that is loaded must fit the model exactly.

    Returns:
        What `work` returns.
    """
    allow_mmengine_checkpoints()
    if cfg.launcher != 'none' and get_device() == 'cpu' and not is_distributed():
        raise UserError(
            f'--launcher {cfg.launcher}: mmengine starts distributed jobs on '
            'accelerators alone, and torch sees none here'
        )
    runner = Runner.from_cfg(cfg)
    # One line for each parameter would bury what matters.
    runner.logger.addFilter(lambda r: not str(r.msg).startswith('paramwise_options'))
    runner.register_hook(SetupGuard(whole_checkpoint), priority='LOWEST')
    return work(runner)


def first_line(error: BaseException) -> str:
    """An exception's message on one line."""
    if isinstance(error, pickle.UnpicklingError):
        return (
            'a checkpoint was refused by the safe loader (weights_only=True): it was not '
            'written by torch.save, or holds more than tensors and plain data'
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; what goes wrong before the first batch ends it with one line.

    Until then, an exception is almost always about what the user asked for (a wrong key, a class
    that does not exist, a file that does not fit), and its message says it all. After that, the
    traceback matters.
    """
    SetupGuard.started = False
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if SetupGuard.started or os.environ.get(TRACEBACK_VARIABLE):
            raise
        kind = (
            ''
            if isinstance(error, UserError)
            else (f' [{type(error).__name__}; {TRACEBACK_VARIABLE}=1 shows where]')
        )
        sys.exit(f'{Path(sys.argv[0]).name}: error: {first_line(error)}{kind}')
