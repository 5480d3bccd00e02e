"""Train with two processes on CPUs, as `--launcher pytorch` does on GPUs, with gloo for nccl.

mmengine's own launcher requires a GPU. It uses a process group that exists, so one is made first.
"""

import os
import socket
import sys
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def work(rank, port, config, work_dir):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE='2',
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
    dist.init_process_group('gloo')
    from tools import train
    from tools.utils import cli

    sys.argv = ['train.py', config, '--work-dir', work_dir, '--launcher', 'pytorch']
    cli.run(train.main)
    dist.destroy_process_group()


if __name__ == '__main__':
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    mp.spawn(work, args=(port, *sys.argv[1:]), nprocs=2)
