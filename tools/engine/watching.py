"""Watching a training: TensorBoard, Weights & Biases, and its curves at the end."""

import os
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_backbone.checkpoints.files import atomic_file
from tools.utils.curves import draw_training, read_scalars
from tools.utils.errors import UserError

BACKENDS = {'tensorboard': 'TensorboardVisBackend', 'wandb': 'WandbVisBackend'}
_IMAGES = 8


def use_vis(cfg: Config, name: str) -> None:
    """Make a training log its scalars, and predictions at validations, to one of BACKENDS, too.

    Weights & Biases logs to the work dir, to be sent by ``wandb sync``, unless WANDB_MODE is set.

    Raises:
        UserError: If its library is not installed, or the config has no visualizer.
    """
    if find_spec(name) is None:
        raise UserError(f'--vis {name}: is not installed: pip install {name}')
    if not cfg.get('visualizer'):
        raise UserError(f"--vis {name}: the config lacks visualizer=dict(type=..., name='...')")
    backend = dict(type=BACKENDS[name])
    if name == 'wandb':
        mode = os.environ.get('WANDB_MODE', 'offline')
        backend['init_kwargs'] = dict(mode=mode, name=Path(cfg.work_dir).name)
    backends = cfg.visualizer.get('vis_backends') or []
    others = [each for each in backends if each['type'] != backend['type']]
    cfg.visualizer.vis_backends = [*others, backend]
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook:
        hook['enable' if cfg.default_scope == 'mmpretrain' else 'draw'] = True


class WatchHook(Hook):
    """Chooses how many predictions are drawn in a validation, and draws the curves at the end."""

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        for hook in runner.hooks if runner.val_loop is not None else ():
            if getattr(hook, 'draw', False) or getattr(hook, 'enable', False):
                # Small data sets would have none by the toolboxes' default, which is each 50th.
                hook.interval = max(1, len(runner.val_dataloader) // _IMAGES)

    @master_only
    def after_train(self, runner: Runner) -> None:
        path = Path(runner.work_dir) / 'curves.png'
        try:
            scalars = read_scalars(Path(runner.work_dir))
        except UserError:  # Without mmengine's LocalVisBackend.
            return
        with atomic_file(path) as partial:
            draw_training(scalars, Path(partial), runner.experiment_name)
        runner.logger.info(f'losses and metrics: {path}')
