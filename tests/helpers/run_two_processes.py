"""Train with two processes on CPUs: what `--launcher pytorch` does, with gloo instead of nccl.

mmengine's own launcher asks for a GPU, so the process group is made here first; it then uses it.
"""

import os
import sys
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def work(rank, config, work_dir):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE='2',
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT='29517',
    )
    dist.init_process_group('gloo')
    from tools import train
    from tools.utils import cli

    sys.argv = ['train.py', config, '--work-dir', work_dir, '--launcher', 'pytorch']
    cli.run(train.main)
    dist.destroy_process_group()


if __name__ == '__main__':
    mp.spawn(work, args=tuple(sys.argv[1:]), nprocs=2)
