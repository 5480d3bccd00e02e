"""From a command line to mmengine's Runner: the config, the checkpoint, the run."""

import argparse
import importlib
import os
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.compat import allow_mmengine_checkpoints
from tools.data.data_hook import DataHook
from tools.data.reading import explained_data_errors
from tools.engine.config_checks import check_override, check_top_level
from tools.engine.config_variables import override_variables
from tools.engine.launching import check_launcher, lost_processes_named
from tools.engine.resuming import prepare_resume
from tools.engine.strategies import DistributedRunner, DividedStateHook, WholeStateHook
from tools.engine.work_dir import latest_checkpoint
from tools.utils import cli
from tools.utils.errors import UserError, did_you_mean, first_line

# The clone, or the folder of an installed package that has configs and tools.
ROOT = Path(__file__).resolve().parents[2]
TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')


def load_config(args: argparse.Namespace) -> Config:
    """The config of the command line, with its overrides checked and merged.

    Args:
        args: Of a parser by :func:`tools.utils.cli.make_parser`.

    Raises:
        UserError: If the file is missing or broken, its toolbox cannot be imported, or an override
            names no key.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    path = find_config(args.config)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # A config is a program: whatever it raises, it is the config's.
        raise UserError(f"config '{path}': {type(error).__name__}: {first_line(error)}") from error
    if cfg.get('default_scope') not in TOOLBOXES:
        raise UserError(
            f"config '{path}': default_scope: got {cfg.get('default_scope')!r}, "
            f'allowed: {" or ".join(map(repr, TOOLBOXES))}'
        )
    _require_toolbox(cfg.default_scope, path)
    check_top_level(cfg, path)
    overrides = args.cfg_options or {}
    for key in overrides:
        check_override(cfg, key)
    cfg = override_variables(cfg, path, overrides)
    cfg.merge_from_dict(overrides)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / path.stem)
    return cfg


def find_config(name: str) -> Path:
    """The file of a config: a path, or the name of one that comes with the package.

    Args:
        name: A path as `my/config.py`, of a file in the current folder or else below the folder of
            the tools' own configs, as `configs/segmentation/NAME.py`; or `NAME` alone.

    Raises:
        UserError: If there is none.
    """
    path = Path(name)
    shipped = {each.stem: each for each in ROOT.glob('configs/[!_]*/*.py')}
    for found in (path, ROOT / path, shipped.get(name)):
        if found is not None and found.is_file():
            return found
    nearby = [str(each) for each in path.parent.glob('*.py')] if path.parent.is_dir() else []
    raise UserError(f"config '{name}' does not exist{did_you_mean(name, [*nearby, *shipped])}")


def _require_toolbox(name: str, path: Path) -> None:
    """Refuse a config whose toolbox cannot be imported.

    mmengine would go on, and later report that the toolbox's classes are not registered.
    """
    try:
        importlib.import_module(f'{name}.models')
    except Exception as error:  # Versions that do not fit together raise many classes.
        raise UserError(
            f"config '{path}': needs {name}, which cannot be imported here ({first_line(error)})"
        ) from error


def use_checkpoint(cfg: Config, checkpoint: str) -> str:
    """Make the Runner load a checkpoint, and return its path or URL.

    Args:
        checkpoint: A URL, a file, or a work dir, whose newest is taken.

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
    cfg.load_from, cfg.resume = checkpoint, False
    return checkpoint


def test_evaluators(cfg: Config) -> list:
    """The test evaluators of a config, which may have one or several."""
    return cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]


def bare_model(model: nn.Module) -> nn.Module:
    """The model inside of wrappers for distribution and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def set_window_size(model: nn.Module, size: object) -> None:
    """Set the attention window of a model's backbones.

    Args:
        size: As `SwinTransformerV2.set_window_size` takes it.

    Raises:
        UserError: If the model has no SwinTransformerV2.
    """
    backbones = [module for module in model.modules() if isinstance(module, SwinTransformerV2)]
    if not backbones:
        raise UserError("--window-size: the config's model has no SwinTransformerV2")
    for backbone in backbones:
        backbone.set_window_size(size)


def check_checkpoint(checkpoint: dict, model: nn.Module, strict: bool) -> None:
    """Refuse a checkpoint that does not fit a model.

    mmengine loads what matches and warns of the rest; a test of the wrong checkpoint would then
    report the scores of random weights.

    Args:
        strict: Whether the checkpoint must have every parameter of the model, in its shape, and no
            other. If not, it must have at least one of them.

    Raises:
        UserError: Naming what is missing and what is left over.
    """
    own = _shapes(bare_model(model).state_dict())
    given = _shapes(checkpoint.get('state_dict', checkpoint))
    if not own & given or (strict and own != given):
        raise UserError(
            f"the checkpoint does not fit the config's model: it lacks {_describe(own - given)} "
            f'and has, of no use here, {_describe(given - own)}'
        )


def _shapes(state: dict) -> set[tuple[str, tuple]]:
    return {
        (str(key).removeprefix('module.'), tuple(getattr(value, 'shape', ())))
        for key, value in state.items()
    }


def _describe(parameters: set[tuple[str, tuple]]) -> str:
    first = ', '.join(f'{name} {shape}' for name, shape in sorted(parameters)[:3])
    more = ', ...' if len(parameters) > 3 else ''
    return f'{len(parameters)} parameters' + (f' ({first}{more})' if parameters else '')


class SetupHook(Hook):
    """Checks and adapts the checkpoint that is loaded, and marks the end of the set-up."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        check_checkpoint(checkpoint, runner.model, self.strict)
        if runner.cfg.get('resume'):
            prepare_resume(runner, checkpoint)

    def before_train(self, runner: Runner) -> None:
        cli.running = True

    before_test = before_train


def execute(cfg: Config, work: Callable[[Runner], object], strict: bool) -> object:
    """Build a Runner and call a function with it.

    Args:
        work: The function; what it returns is returned.
        strict: As in :func:`check_checkpoint`.

    Raises:
        UserError: If a distributed job is requested that was not launched, or the checkpoint does
            not fit.
    """
    allow_mmengine_checkpoints()
    check_launcher(cfg.launcher)
    runner = DistributedRunner.from_cfg(cfg)
    # One line for each parameter would bury what matters.
    runner.logger.addFilter(lambda r: not str(r.msg).startswith('paramwise_options'))
    runner.register_hook(DataHook())
    runner.register_hook(SetupHook(strict), priority='LOWEST')
    runner.register_hook(WholeStateHook())
    runner.register_hook(DividedStateHook())
    with explained_data_errors(cfg.default_scope), lost_processes_named():
        return work(runner)
