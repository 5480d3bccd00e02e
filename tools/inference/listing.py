"""The models of work dirs, for a page on which others choose among them."""

import argparse
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from tools.engine.runner import load_config
from tools.engine.work_dir import latest_checkpoint
from tools.utils.errors import UserError
from tools.utils.runtimes import RUNTIMES, files_for

TASKS = {'mmseg': 'segmentation', 'mmdet': 'detection'}
TORCH = 'torch'


class Listed(NamedTuple):
    """A checkpoint that can be chosen.

    Attributes:
        runtimes: What can run it: the exported file by the name of the runtime, None for torch.
    """

    task: str
    config: Path
    checkpoint: Path
    runtimes: dict[str, Path | None]


def read_config(path: Path) -> Config:
    """The config of a file, as the tools read it.

    Raises:
        UserError: If it is broken, or its toolbox is missing.
    """
    options = dict(cfg_options=None, launcher='none', local_rank=0, work_dir=None)
    return load_config(argparse.Namespace(config=str(path), **options))


def list_models(folders: Iterable[Path], exported: Iterable[Path] = ()) -> dict[str, Listed]:
    """The checkpoints of some work dirs by name, `WORK_DIR/FILE`, the newest of each first.

    Args:
        folders: Each with a config, as a training writes it there, and checkpoints.
        exported: Exported files of the newest checkpoint, beside those in its folder; of one folder
            alone.

    Raises:
        UserError: If a folder has no config of mmseg or mmdet, no checkpoint, or the name of
            another.
    """
    folders, exported = list(folders), list(exported)
    if exported and len(folders) != 1:
        raise UserError(f'--exported: got {len(folders)} work dirs, allowed: the one that it is of')
    found: dict[str, Listed] = {}
    for folder in folders:
        name = folder.resolve().name
        listed = _models_of(folder, exported)
        if any(f'{name}/{each.checkpoint.name}' in found for each in listed):
            raise UserError(f"work dirs: got two that are named '{name}': rename one")
        found |= {f'{name}/{each.checkpoint.name}': each for each in listed}
    return found


def list_below(folder: Path) -> dict[str, Listed]:
    """The models of all work dirs in a folder; a line to stderr says which cannot be used, and why.

    Raises:
        UserError: If there are none.
    """
    found: dict[str, Listed] = {}
    for path in sorted(folder.glob('*/')):
        if any(path.glob('*.py')) and any(path.glob('*.pth')):
            try:
                found |= list_models([path])
            except UserError as error:
                print(f'left out: {error}', file=sys.stderr)
    if not found:
        raise UserError(
            f"'{folder}': no work dir of a segmentor or detector in it; name one (or train: make "
            'demo)'
        )
    return found


def _models_of(folder: Path, exported: list[Path]) -> list[Listed]:
    configs = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise UserError(f"'{folder}': no config (.py) in it; tools/train.py writes one")
    scope = read_config(configs[-1]).default_scope
    if scope not in TASKS:
        raise UserError(f"'{folder}': got a model of {scope}, allowed: {' or '.join(TASKS)}")
    newest = latest_checkpoint(str(folder))
    if newest is None:
        raise UserError(f"'{folder}': no iter_*.pth or epoch_*.pth in it")
    newest = folder / Path(newest).name
    names = ('best_*.pth', 'iter_*.pth', 'epoch_*.pth')
    others = [path for pattern in names for path in sorted(folder.glob(pattern))]
    files = exported + sorted(folder.glob('*.xml')) + sorted(folder.glob('*.onnx'))
    runtimes = {TORCH: None}
    for runtime in filter(find_spec, RUNTIMES):
        if fitting := [path for path in files if runtime in files_for(path)]:
            runtimes[runtime] = fitting[0]
    return [
        Listed(TASKS[scope], configs[-1], path, runtimes if path == newest else {TORCH: None})
        for path in dict.fromkeys([newest, *others])
    ]
