"""The training that kill.py kills: a small one, or that of a config. May pause within a save."""

import argparse
import os
import sys
import time

from mmengine.fileio.backends import LocalBackend

from tests.helpers import random_training
from tests.helpers.toy_training import run
from tools import train
from tools.engine.checkpoint_hook import SafeCheckpointHook
from tools.engine.work_dir import latest_checkpoint, only_training
from tools.utils import cli

# Of a save: half of the file is written; it is whole, but has no name yet; it has its name, but is
# not noted as the last; it is noted, but an older one is not deleted yet.
MOMENTS = ('half', 'unnamed', 'unnoted', 'undeleted')
PAUSING = 'pausing in a save'


def pause_in_save(moment: str, count: int) -> None:
    """Make the training pause at a moment of its n-th save."""
    put, replace, remove = LocalBackend.put, os.replace, SafeCheckpointHook._remove
    done = dict.fromkeys(MOMENTS, 0)

    def pause(at):
        done[at] += 1
        if at == moment and done[at] == count:
            print(PAUSING, flush=True)
            time.sleep(600)

    def put_halves(self, content, path):
        with open(path, 'wb') as file:
            file.write(content[: len(content) // 2])
            file.flush()
            pause('half')
        put(self, content, path)

    def replace_late(source, target):
        checkpoint = str(target).endswith('.pth')
        if checkpoint:
            pause('unnamed')
        replace(source, target)
        if checkpoint:
            pause('unnoted')

    def remove_late(self, paths):
        pause('undeleted')
        remove(self, paths)

    LocalBackend.put, os.replace, SafeCheckpointHook._remove = put_halves, replace_late, remove_late


def small(work_dir: str, resume: bool) -> None:
    """Train a small model for 12 iterations: two workers, EMA, validations, the best kept."""
    cfg = random_training.config(
        work_dir,
        until=12,
        randomness=dict(seed=5),
        train_dataloader=dict(num_workers=2, persistent_workers=True),
        train_cfg=dict(val_interval=4),
        custom_hooks=[dict(type='EMAHook', momentum=0.1)],
        default_hooks=dict(checkpoint=dict(max_keep_ckpts=2)),
    )
    with only_training(work_dir, 'none'):
        run(cfg, latest_checkpoint(work_dir) if resume else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir')
    parser.add_argument('--config')
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('--pause', nargs=2, metavar=('MOMENT', 'COUNT'))
    args = parser.parse_args()
    if args.pause:
        pause_in_save(args.pause[0], int(args.pause[1]))
    if args.config:
        resume = ['--resume'] if args.resume else []
        sys.argv = ['train.py', args.config, '--work-dir', args.work_dir, '--seed', '5', *resume]
        cli.run(train.main)
    else:
        small(args.work_dir, args.resume)


if __name__ == '__main__':
    main()
