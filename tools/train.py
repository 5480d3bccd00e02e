"""Train a model: mmseg's and mmdet's configs alike."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.runner import Runner

from tools import cli


def parse_args():
    parser = cli.make_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate to the effective batch size')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='go on from this checkpoint, or from the latest in the work dir')
    return parser.parse_args()


def apply_options(cfg: Config, args) -> None:
    """Write the command line's wishes into the config."""
    if args.amp:
        if cfg.optim_wrapper.type not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise cli.UserError(f'--amp: optim_wrapper.type is {cfg.optim_wrapper.type!r}, '
                                "allowed: 'OptimWrapper'")
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if not cfg.get('auto_scale_lr', {}).get('base_batch_size'):
            raise cli.UserError('--auto-scale-lr: the config lacks auto_scale_lr=dict('
                                'base_batch_size=...), the batch size its learning rate is for')
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
        if cfg.load_from and '://' not in args.resume and not Path(args.resume).is_file():
            raise cli.UserError(f"--resume: checkpoint '{args.resume}' does not exist")


def report_batch_size(cfg: Config) -> None:
    """Print the effective batch size: the commonest cause of results that cannot be reproduced."""
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    per_process, processes = cfg.train_dataloader.batch_size, get_world_size()
    effective = per_process * processes * accumulated
    line = (f'effective batch size: {effective} = {per_process} a process x {processes} processes '
            f'x {accumulated} accumulated')
    base = cfg.get('auto_scale_lr', {}).get('base_batch_size')
    if base and base != effective:
        line += f'; the learning rate is for {base}'
        line += (', and is scaled' if cfg.auto_scale_lr.get('enable')
                 else ': --auto-scale-lr scales it')
    print_log(line, logger='current')


def main():
    args = parse_args()
    cfg = cli.load_config(args)
    apply_options(cfg, args)
    cli.check_data(cfg, 'train_dataloader', *(['val_dataloader'] if cfg.get('val_cfg') else []))

    def train(runner: Runner) -> None:
        report_batch_size(cfg)
        runner.train()

    cli.execute(cfg, train)


if __name__ == '__main__':
    cli.run(main)
