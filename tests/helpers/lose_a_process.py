"""One process of several that train a toy, of which one loses its life.

lose_a_process.py WORK_DIR RANK SIGNAL: the process of that rank sends itself the signal.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmengine.hooks import Hook

from tests.helpers import toy_training
from tools.engine.runner import execute
from tools.utils import cli


class Signal(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 3 and runner.rank == int(sys.argv[2]):
            os.kill(os.getpid(), int(sys.argv[3]))


def main():
    cfg = toy_training.config(
        sys.argv[1],
        until=1000,
        launcher='pytorch',
        env_cfg=dict(dist_cfg=dict(timeout=5)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=10**6)),
    )

    def train(runner):
        runner.register_hook(Signal())
        runner.train()

    execute(cfg, train, strict=True)


cli.run(main)
