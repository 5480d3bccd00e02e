"""Distributed jobs: their start where there is no accelerator, and their end when one is lost."""

import os
from unittest import mock

from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed

from tools.utils.errors import UserError

# What each launcher sets; without it, nothing was launched.
_VARIABLES = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}


def check_launcher(launcher: str) -> None:
    """Refuse a launcher that did not start this process.

    Raises:
        UserError: Naming the variable that it would have set.
    """
    variable = _VARIABLES.get(launcher)
    if variable and variable not in os.environ and not is_distributed():
        raise UserError(
            f'--launcher {launcher}: {variable} is not set, so no such launcher started this '
            'process; see tools/dist_train.sh and tools/slurm_train.sh'
        )


def init_without_accelerator(launcher: str, dist_cfg: dict) -> None:
    """Start torch.distributed on CPUs, with gloo; with an accelerator, leave it to mmengine.

    mmengine's function selects a GPU before anything else, which fails where there is none.

    Args:
        dist_cfg: As in a config: arguments of ``init_process_group``, `timeout` in seconds.
    """
    if get_device() != 'cpu' or is_distributed():
        return
    with mock.patch('torch.cuda.set_device'):
        init_dist(launcher, **{**dist_cfg, 'backend': 'gloo'})
