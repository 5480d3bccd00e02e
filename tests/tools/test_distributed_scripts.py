"""dist_train.sh and slurm_train.sh: several processes and machines, with gloo on CPUs."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist

from tests.helpers.scripts import call, free_port, output_of, start_shell
from tests.helpers.slurm import write_stand_ins

for toolbox in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(toolbox)

from tools import test, train
from tools.engine.preemption import EXIT_CODE
from tools.engine.state_size import StateSizeHook


def options(work_dir, iterations, *more):
    schedule = f'train_cfg.max_iters={iterations}', f'train_cfg.val_interval={iterations}'
    return '--work-dir', work_dir, *more, '--cfg-options', *schedule


@pytest.mark.parametrize(
    'task', ['segmentation', pytest.param('detection', marks=pytest.mark.slow)]
)
def test_two_processes(tasks, tmp_path, task):
    """With DistributedDataParallel every parameter takes part, and one process reports."""
    arguments = tasks.configs[task], 2, *options(tmp_path, 2)
    process = start_shell('tools/dist_train.sh', *arguments, MASTER_PORT=free_port())
    output = output_of(process)
    assert output.count('effective batch size: 4 = 2 per process x 2 processes') == 1


@pytest.fixture
def launched(monkeypatch):
    """As torchrun starts a job of one process."""
    variables = dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR='127.0.0.1')
    for name, value in dict(variables, MASTER_PORT=free_port(), CUDA_VISIBLE_DEVICES=-1).items():
        monkeypatch.setenv(name, str(value))
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_process_groups_end_with_the_work(tasks, tmp_path, launched):
    """Also if a training is preempted. Left to the interpreter's end, they may abort it."""
    config, used = tasks.configs['segmentation'], []

    def signal_in_job(hook, runner, batch_idx, data_batch=None):
        used.append(dist.get_backend())
        os.kill(os.getpid(), signal.SIGUSR1)

    call(train.main, config, *options(tmp_path, 1, '--launcher', 'pytorch'))
    assert not dist.is_initialized()
    with (
        mock.patch.object(StateSizeHook, 'before_train_iter', signal_in_job),
        pytest.raises(SystemExit) as ended,
    ):
        call(train.main, config, *options(tmp_path, 2, '--launcher', 'pytorch', '--resume'))
    assert (ended.value.code, used) == (EXIT_CODE, ['gloo'])
    assert not dist.is_initialized()
    call(test.main, config, tmp_path / 'iter_1.pth', '--launcher', 'pytorch')
    assert not dist.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize('task', ['segmentation', 'detection'])
@pytest.mark.parametrize('strategy', ['zero1', 'fsdp2'])
def test_strategy_of_the_command_line(tasks, tmp_path, task, strategy):
    """Trained for two iterations in two processes, then for two more in one."""
    arguments = tasks.configs[task], 2, *options(tmp_path, 2, '--strategy', strategy)
    output_of(start_shell('tools/dist_train.sh', *arguments, MASTER_PORT=free_port()))
    arguments = tasks.configs[task], 1, *options(tmp_path, 4, '--resume')
    output = output_of(start_shell('tools/dist_train.sh', *arguments, MASTER_PORT=free_port()))
    assert 'resumed epoch: 0, iter: 2' in output
    assert (tmp_path / 'iter_4.pth').is_file()


# --- several machines -----------------------------------------------------------------------------


@pytest.fixture
def machines():
    """Two network namespaces joined by a cable: for each, the command that runs something in it."""
    with ExitStack() as undo:

        def ip(*args):
            subprocess.run(['ip', *args], check=True, capture_output=True)

        names = [f'swinv2-{os.getpid()}-{i}' for i in range(2)]
        try:
            for name in names:
                ip('netns', 'add', name)
                undo.callback(ip, 'netns', 'delete', name)
            ends = [('name', 'eth0', 'netns', name) for name in names]
            ip('link', 'add', *ends[0], 'type', 'veth', 'peer', *ends[1])
            for i, name in enumerate(names):
                ip('-n', name, 'address', 'add', f'10.77.0.{i + 1}/24', 'dev', 'eth0')
                ip('-n', name, 'link', 'set', 'eth0', 'up')
                ip('-n', name, 'link', 'set', 'lo', 'up')
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f'network namespaces cannot be made here: {error}')
        yield [('ip', 'netns', 'exec', name) for name in names]


@pytest.mark.slow
def test_two_machines(tasks, tmp_path, machines):
    """Two machines of two processes each, and resumed."""

    def train(*arguments):
        processes = [
            start_shell(
                'tools/dist_train.sh',
                *(tasks.configs['segmentation'], 2, *arguments),
                prefix=machine,
                NNODES=2,
                NODE_RANK=rank,
                MASTER_ADDR='10.77.0.1',
                MASTER_PORT=29500,
                GLOO_SOCKET_IFNAME='eth0',
            )
            for rank, machine in enumerate(machines)
        ]
        return [output_of(process) for process in processes]

    first, second = train(*options(tmp_path, 2))
    assert first.count('effective batch size: 8 = 2 per process x 4 processes') == 1
    assert 'effective batch size' not in second
    first, _ = train(*options(tmp_path, 4, '--resume'))
    assert 'resumed epoch: 0, iter: 2' in first
    assert (tmp_path / 'iter_4.pth').is_file()


@pytest.mark.slow
def test_slurm(tasks, tmp_path):
    write_stand_ins(tmp_path)
    _, work_dir, *rest = options(tmp_path / 'work', 2)
    arguments = 'partition', 'job', tasks.configs['segmentation'], work_dir, *rest
    folders = tmp_path, Path(sys.executable).parent, os.environ['PATH']
    variables = dict(
        PATH=os.pathsep.join(map(str, folders)),
        GPUS=2,
        GPUS_PER_NODE=1,
        SRUN_ARGS='--qos low',
        MASTER_PORT=free_port(),
    )
    output = output_of(start_shell('tools/slurm_train.sh', *arguments, **variables))
    expected = '-p partition --job-name=job --gres=gpu:1 --ntasks=2 --ntasks-per-node=1'
    assert expected in output
    assert '--qos low' in output
    assert output.count('effective batch size: 4 = 2 per process x 2 processes') == 1
    assert (tmp_path / 'work' / 'iter_2.pth').is_file()
