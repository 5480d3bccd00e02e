"""Trainings divided among processes equal those in one, and resume in each other's mode."""

import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook

from swinv2_backbone.compat import safe_mmengine_globals
from tests.helpers.scaling import SAVED, STEPS, STRATEGIES, start_processes, train
from tests.helpers.scripts import ROOT
from tools.engine.strategies import (
    DistributedRunner,
    FullyShardedModel,
    use_strategy,
    with_sharded_optimizer,
)
from tools.utils.errors import UserError

# One of each toolbox.
CONFIGS = [min(folder.glob('*.py')) for folder in ROOT.glob('configs/[!_]*') if folder.is_dir()]


def load(path):
    with safe_mmengine_globals():
        return torch.load(path, weights_only=True)


@pytest.mark.parametrize('count', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_strategies_equal_one_process(tmp_path, count):
    """Losses, weights and checkpoints, whatever the strategy before and after a resume.

    In float64, where only rounding differs: by 1e-16 in a gradient, which Adam, dividing by at
    least its eps of 1e-8, turns into less than 1e-10 of a weight in a few steps of 1e-3.
    """
    alone = train(tmp_path / 'alone', count)
    processes = start_processes(count, 'tests/helpers/train_with_strategies.py', tmp_path)
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    failed = [o[-3000:] for p, o in zip(processes, outputs, strict=True) if p.returncode]
    assert not failed, '\n'.join(failed)
    losses = torch.load(tmp_path / 'losses.pth', weights_only=True)
    check_sizes(tmp_path)
    for name in STRATEGIES:  # back in one process
        file = tmp_path / name / f'iter_{SAVED}.pth'
        losses[name, 'alone'] = train(tmp_path / f'{name}_alone', count, resume=file)
    for key, got in losses.items():
        assert got == pytest.approx(alone[-len(got) :], abs=1e-10), key
    for key in losses:
        folder = '_'.join(key) if isinstance(key, tuple) else key
        for step in {SAVED, STEPS} if folder == key else {STEPS}:
            expected, got = (load(tmp_path / f / f'iter_{step}.pth') for f in ('alone', folder))
            compare(expected, got, folder)


def compare(expected, got, folder):
    for part in ('state_dict', 'optimizer'):
        torch.testing.assert_close(
            got[part]['state'] if part == 'optimizer' else got[part],
            expected[part]['state'] if part == 'optimizer' else expected[part],
            rtol=0,
            atol=1e-10,
            msg=lambda m, part=part: f'{folder}, {part}: {m}',
        )
    assert got['state_dict']._metadata == expected['state_dict']._metadata


def check_sizes(folder):
    """What is divided takes less memory in each process, what is not takes as much as with ddp."""
    sizes = {}
    for name in STRATEGIES:
        log = ''.join(path.read_text() for path in folder.glob(f'{name}/*/*.log'))
        [line] = re.findall('state per process: (.*)', log)
        sizes[name] = {kind: float(mb) for kind, mb in re.findall(r'(\w+) ([\d.]+) MB', line)}
    ddp = sizes['ddp']
    assert ddp['gradients'] == ddp['parameters'] > 1
    assert ddp['optimizer'] == pytest.approx(2 * ddp['parameters'], abs=0.1)
    for name, divided in dict(zero1={'optimizer'}, fsdp2=ddp.keys()).items():
        for kind, size in sizes[name].items():
            assert size < 0.75 * ddp[kind] if kind in divided else size == ddp[kind], (name, kind)


@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize('name', STRATEGIES)
def test_a_config_takes_a_strategy_as_a_base_or_as_an_option(tmp_path, config, name):
    path = tmp_path / 'config.py'
    path.write_text(f"_base_ = ['{config}', '{ROOT}/configs/_base_/strategies/{name}.py']")
    by_base, by_option = Config.fromfile(path), Config.fromfile(config)
    use_strategy(by_option, 'zero1')  # which is replaced
    use_strategy(by_option, name)
    assert by_base.to_dict() == by_option.to_dict()
    assert by_base.get('shard_optimizer', False) == (name == 'zero1')


def test_mistakes_in_a_strategy():
    model = FullyShardedModel(torch.nn.Linear(1, 1), units=['SwinTransformerBlock'])
    with pytest.raises(UserError, match='units: the model has no SwinTransformerBlock'):
        model.shard()
    with pytest.raises(UserError, match=r"optimizer\.type is 'Lion', allowed: one of torch\.optim"):
        with_sharded_optimizer(dict(optimizer=dict(type='Lion', lr=1)))
    runner = SimpleNamespace(_shards_model=True, hooks=[EMAHook()])
    with pytest.raises(UserError, match='EMAHook copies the model, which fsdp2 divides; allowed'):
        DistributedRunner.train(runner)
