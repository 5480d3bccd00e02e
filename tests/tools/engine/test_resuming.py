"""Resuming: other work dirs are left alone, and what the checkpoint overrules is said."""

import shutil
from pathlib import Path

import pytest
import torch

from swinv2_backbone.compat import safe_mmengine_globals
from tests.helpers.toy_training import config, optimizer, run, schedule
from tools.utils.errors import UserError


def read(path):
    with safe_mmengine_globals():
        return torch.load(path, weights_only=True)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob('*.pth')}


@pytest.fixture(scope='module')
def _finished(tmp_path_factory):
    return tmp_path_factory.mktemp('finished') / 'work'


@pytest.fixture
def finished(_finished):
    """The work dir of a training of 8 iterations: iter_6, iter_8 and the best, at 8."""
    if not _finished.exists():
        run(config(_finished))
    assert sorted(contents(_finished)) == ['best_acc_iter_8.pth', 'iter_6.pth', 'iter_8.pth']
    return _finished


def test_resuming_in_another_work_dir_leaves_the_first_alone(finished, tmp_path):
    """mmengine deletes the best checkpoint that the resumed state names, wherever it is."""
    before = contents(finished)
    (tmp_path / 'iter_6.pth').write_bytes(b'of another run')
    log = run(config(tmp_path, until=10, score=0.9), finished / 'iter_8.pth')
    assert contents(finished) == before
    assert 'The best checkpoint with 0.9000 acc' in log
    assert set(contents(tmp_path)) == {'best_acc_iter_10.pth', 'iter_10.pth', 'iter_6.pth'}
    assert f'the best so far, {finished}/best_acc_iter_8.pth with 0.5, stays there' in log


def test_a_best_checkpoint_elsewhere_is_beaten_or_stays_the_best(finished, tmp_path):
    run(config(tmp_path, until=10, score=0.3), finished / 'iter_8.pth')
    assert set(contents(tmp_path)) == {'iter_10.pth'}


def test_a_moved_work_dir_goes_on(finished, tmp_path):
    """The best checkpoint is the one that was moved along, not that at the old place."""
    before = contents(finished)
    shutil.copytree(finished, tmp_path / 'moved')
    run(config(tmp_path / 'moved', until=10, score=0.9), tmp_path / 'moved' / 'iter_8.pth')
    assert contents(finished) == before
    assert set(contents(tmp_path / 'moved')) == {
        'best_acc_iter_10.pth',
        'iter_10.pth',
        'iter_8.pth',
    }


def test_the_folder_of_out_dir_is_this_runs_own(tmp_path):
    hooks = config(tmp_path).default_hooks
    hooks.checkpoint.out_dir = str(tmp_path / 'saved')
    run(config(tmp_path / 'work', default_hooks=hooks))
    own = tmp_path / 'saved' / 'work'
    cfg = config(tmp_path / 'work', default_hooks=hooks, until=10, score=0.9)
    run(cfg, own / 'iter_8.pth')
    assert set(contents(own)) == {'best_acc_iter_10.pth', 'iter_10.pth', 'iter_8.pth'}


def test_what_the_checkpoint_overrules_is_said(finished, tmp_path):
    cfg = config(
        tmp_path,
        optim_wrapper=optimizer(lr=0.2, weight_decay=0.02),
        param_scheduler=schedule(8, eta_min=0.01),
    )
    log = run(cfg, finished / 'iter_6.pth')
    [line] = [line for line in log.splitlines() if 'overrules the config' in line]
    assert line.endswith(
        'the checkpoint overrules the config: lr 0.1 (config: 0.2), weight_decay 0.01 '
        '(config: 0.02), param_scheduler[1].eta_min 0 (config: 0.01); to train with the '
        "config's, start from the weights: set load_from instead"
    )
    there, here = read(finished / 'iter_8.pth'), read(tmp_path / 'iter_8.pth')
    assert here['optimizer']['param_groups'] == there['optimizer']['param_groups']
    assert [group['initial_lr'] for group in here['optimizer']['param_groups']] == [0.1, 0.05]


def test_nothing_is_said_where_nothing_differs(finished, tmp_path):
    log = run(config(tmp_path), finished / 'iter_6.pth')
    assert 'overrules the config' not in log
    assert ' is extended ' not in log


@pytest.mark.parametrize(
    ('by_epoch', 'convert'),
    [(False, False), (True, False), (True, True)],
    ids=['iterations', 'epochs', 'epochs converted to iterations'],
)
def test_a_schedule_is_extended_with_the_training(tmp_path, by_epoch, convert):
    """From there on the learning rate is that of the longer schedule, begun at the first step."""

    def part(name, until, full):
        kwargs = dict(by_epoch=True, convert_to_iter_based=convert) if by_epoch else {}
        return config(
            tmp_path / name,
            by_epoch=by_epoch,
            until=until,
            param_scheduler=schedule(full, eta_min=0.001, **kwargs),
        )

    name = 'epoch' if by_epoch else 'iter'
    run(part('whole', 6, 6))
    run(part('half', 4, 4))
    log = run(part('rest', 6, 6), tmp_path / 'half' / f'{name}_4.pth')
    unit = 'epochs' if by_epoch else 'iterations'
    assert f'the schedule is extended from 4 to 6 {unit}, as in the config' in log
    assert 'overrules' not in log
    whole, rest = (read(tmp_path / each / f'{name}_6.pth') for each in ('whole', 'rest'))
    for part in ('param_groups', 'base_param_settings'):
        assert rest['optimizer'][part] == whole['optimizer'][part]
    for ours, theirs in zip(rest['param_schedulers'], whole['param_schedulers'], strict=True):
        assert ours == theirs
    rates = [
        read(tmp_path / each / f'{name}_4.pth')['optimizer']['param_groups'][0]['lr']
        for each in ('whole', 'half')
    ]
    assert rates[0] > rates[1], 'else this test would pass without an extension'


def test_an_extended_schedule_keeps_the_learning_rate_of_the_checkpoint(tmp_path):
    run(config(tmp_path / 'half', until=4))
    cfg = config(tmp_path / 'rest', until=6)
    cfg.optim_wrapper.optimizer.lr = 0.2
    log = run(cfg, tmp_path / 'half' / 'iter_4.pth')
    assert 'overrules the config: lr 0.1 (config: 0.2)' in log
    assert read(tmp_path / 'rest' / 'iter_6.pth')['param_schedulers'][0]['base_values'] == [
        0.1,
        0.05,
        0.1,
    ]


def test_a_schedule_that_ends_before_a_longer_training_is_said(finished, tmp_path):
    log = run(config(tmp_path, until=10, param_scheduler=schedule(8)), finished / 'iter_8.pth')
    assert 'the training is extended from 8 to 10 iterations, the schedule is not' in log


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(optim_wrapper={**optimizer(), 'optimizer': dict(type='AdamW', lr=0.1)}),
            r'optimizer: the checkpoint has dampening, .*momentum.*, the config .*betas',
        ),
        (
            dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1))),
            'optimizer: the checkpoint has 3 parameter groups, the config 1',
        ),
        (
            dict(param_scheduler=schedule(8)[:1]),
            'param_scheduler: the checkpoint has 2 schedulers, the config 1',
        ),
        (
            dict(
                param_scheduler=[
                    schedule(8)[0],
                    dict(type='MultiStepLR', by_epoch=False, milestones=[7]),
                ]
            ),
            r'param_scheduler\[1\]: the checkpoint has eta_min, .*power.*, the config .*milestones',
        ),
    ],
    ids=['optimizer', 'groups', 'number of schedulers', 'scheduler'],
)
def test_a_state_of_another_kind_is_refused(finished, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(config(tmp_path, **changes), finished / 'iter_6.pth')


def test_a_best_checkpoint_cannot_be_resumed(finished, tmp_path):
    """It has no state of the optimizer and the schedule, which mmengine would start anew."""
    with pytest.raises(UserError, match=r'lacks optimizer, param_schedulers.*set load_from'):
        run(config(tmp_path, until=10), finished / 'best_acc_iter_8.pth')


def test_resuming_runs_no_code_of_the_checkpoint(finished, tmp_path):
    """mmengine would run the text of a checkpoint's `meta.config`."""
    state = read(finished / 'iter_6.pth')
    state['meta']['config'] = f'import os\nos.mkdir({str(tmp_path / "code_has_run")!r})'
    torch.save(state, tmp_path / 'iter_6.pth')
    run(config(tmp_path / 'work'), tmp_path / 'iter_6.pth')
    assert not (tmp_path / 'code_has_run').exists()


def test_a_schedule_that_follows_a_metric_is_not_extended(tmp_path):
    """Its state is what it measured, which steps alone do not give."""
    plateau = dict(type='ReduceOnPlateauLR', monitor='acc', rule='greater', begin=0)

    def part(until):
        return config(
            tmp_path, by_epoch=True, until=until, param_scheduler=[dict(plateau, end=until)]
        )

    run(part(4))
    log = run(part(6), tmp_path / 'epoch_4.pth')
    assert 'the training is extended from 4 to 6 epochs, the schedule is not' in log
