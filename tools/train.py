"""Train a model from a config of mmseg, mmdet or mmpretrain."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.config import Config, ConfigDict
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.runner import Runner

from tools.engine.amp import use_amp
from tools.engine.config_checks import check_data
from tools.engine.duration import DurationHook
from tools.engine.finite import FiniteLossHook
from tools.engine.launching import end_communication
from tools.engine.optimizers import KINDS, use_adamw
from tools.engine.preemption import PreemptionHook
from tools.engine.runner import execute, load_config
from tools.engine.state_size import StateSizeHook
from tools.engine.strategies import STRATEGIES, use_strategy
from tools.engine.watching import BACKENDS, WatchHook, use_vis
from tools.engine.work_dir import latest_checkpoint, only_training
from tools.utils import cli
from tools.utils.errors import UserError


def parse_args():
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        '--amp',
        nargs='?',
        const='auto',
        choices=['auto', 'fp16', 'bf16'],
        help='automatic mixed precision; auto, the default: bf16 where the device has it (not for '
        'detectors), elsewhere fp16 with loss scaling',
    )
    parser.add_argument(
        '--accumulate',
        type=cli.positive,
        metavar='N',
        help='update the weights after every N iterations, by the mean of their gradients',
    )
    parser.add_argument(
        '--optimizer',
        choices=KINDS,
        help='another implementation of AdamW: fused, of torch, or 8bit, of bitsandbytes',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the effective batch size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from this checkpoint, or from the latest in the work dir',
    )
    parser.add_argument(
        '--strategy',
        choices=STRATEGIES,
        help="how a training is divided among processes (default: the config's, or ddp)",
    )
    parser.add_argument(
        '--seed', type=seed, help='of all that is random (default: a random one, which is logged)'
    )
    parser.add_argument(
        '--deterministic', action='store_true', help='use deterministic algorithms alone; slower'
    )
    parser.add_argument(
        '--vis',
        choices=BACKENDS,
        help='also log scalars, and predictions at validations, to TensorBoard, or to Weights & '
        'Biases (offline)',
    )
    return parser.parse_args()


def seed(text: str) -> int:
    """An argparse type: an integer that NumPy takes as a seed."""
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"got '{text}', allowed: an integer from 0 to 2**32 - 1")
    return int(text)


def apply_options(cfg: Config, args) -> None:
    """Apply the command-line options to the config.

    Raises:
        UserError: If the config does not allow an option.
    """
    if args.strategy:
        use_strategy(cfg, args.strategy)
    if args.amp:
        use_amp(cfg, args.amp)
    randomness = cfg.setdefault('randomness', ConfigDict(seed=None))
    if args.seed is not None:
        randomness.seed = args.seed
    if args.deterministic:
        randomness.deterministic = True
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # torch requires it
    if args.accumulate:
        if 'optimizer' not in cfg.optim_wrapper:
            raise UserError(
                '--accumulate: optim_wrapper has several optimizers; set '
                'accumulative_counts in each'
            )
        cfg.optim_wrapper.accumulative_counts = args.accumulate
    if args.optimizer:
        use_adamw(cfg, args.optimizer)
    if args.vis:
        use_vis(cfg, args.vis)
    if args.auto_scale_lr:
        scale = cfg.get('auto_scale_lr') or {}
        if not scale.get('base_batch_size'):
            raise UserError(
                '--auto-scale-lr: the config lacks auto_scale_lr=dict('
                'base_batch_size=...), the batch size its learning rate is for'
            )
        scale.enable = True
    if args.resume is None and cfg.get('resume') and not cfg.get('load_from'):
        args.resume = 'auto'  # mmengine's own search may find a truncated file, or none.
    if args.resume == 'auto':
        latest = latest_checkpoint(cfg.work_dir)
        cfg.resume = latest is not None
        cfg.load_from = latest or cfg.get('load_from')
    elif args.resume is not None:
        if '://' not in args.resume and not Path(args.resume).is_file():
            raise UserError(f"--resume: checkpoint '{args.resume}' does not exist")
        cfg.resume, cfg.load_from = True, args.resume
    if cfg.get('resume') and cfg.model.get('backbone', {}).get('init_cfg'):
        cfg.model.backbone.init_cfg = None  # The checkpoint replaces those weights.


def scale_with_accumulation(runner: Runner) -> None:
    """Make mmengine scale the learning rate to the batch of an update, not of a forward."""
    scale = runner.auto_scale_lr
    if scale and scale.get('enable') and scale.get('base_batch_size'):
        accumulated = runner.cfg.optim_wrapper.get('accumulative_counts', 1)
        # A copy: the config that is saved can then be run again.
        base = scale['base_batch_size'] / accumulated
        runner.auto_scale_lr = {**scale, 'base_batch_size': base}


def report_batch_size(cfg: Config) -> None:
    """Log the effective batch size, the most common cause of results that cannot be reproduced."""
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    processes = get_world_size()
    per_process = cfg.train_dataloader.get('batch_size', 1)
    effective = per_process * processes * accumulated
    line = (
        f'effective batch size: {effective} = {per_process} per process x {processes} processes '
        f'x {accumulated} accumulated'
    )
    scale = cfg.get('auto_scale_lr') or {}
    base = scale.get('base_batch_size')
    if base and scale.get('enable'):
        line += f'; the learning rate is scaled by {effective / base:g}'
    elif base and base != effective:
        line += f'; the learning rate is for {base}: --auto-scale-lr scales it'
    if accumulated > 1:
        line += f'; the weights are updated after every {accumulated} iterations'
    print_log(line, logger='current')


def main():
    args = parse_args()
    cfg = load_config(args)
    apply_options(cfg, args)
    check_data(cfg, 'train_dataloader', *(['val_dataloader'] if cfg.get('val_cfg') else []))

    preemption = PreemptionHook()

    def train(runner: Runner) -> None:
        report_batch_size(cfg)
        scale_with_accumulation(runner)
        runner.register_hook(FiniteLossHook())
        runner.register_hook(DurationHook(), priority='LOWEST')
        runner.register_hook(StateSizeHook())
        runner.register_hook(preemption)
        runner.register_hook(WatchHook())
        runner.train()

    with preemption.listening(), only_training(cfg.work_dir, cfg.launcher):
        execute(cfg, train, strict=bool(cfg.get('resume')))
    end_communication()


if __name__ == '__main__':
    cli.run(main)
