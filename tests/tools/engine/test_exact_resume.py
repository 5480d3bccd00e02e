"""A training that was interrupted and resumed ends with the weights of one that was not."""

from collections import Counter

import pytest
import torch
from mmengine.hooks import Hook

from tests.helpers.random_training import config, outcome, read
from tests.helpers.toy_training import run
from tools.engine.amp import use_amp
from tools.engine.work_dir import latest_checkpoint

SEED = dict(randomness=dict(seed=3))


@pytest.fixture(autouse=True)
def _workers_are_not_waited_for(monkeypatch):
    """Those of torch take 5 seconds to end on some machines, and are then terminated."""
    monkeypatch.setattr('torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL', 0.1)


class Interrupt(Hook):
    """Interrupts a training when it has the data of its n-th iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            raise KeyboardInterrupt


def interrupted(cfg, iteration):
    """Run a training until it is interrupted, and resume it; returns the log of the rest."""
    with pytest.raises(KeyboardInterrupt):
        run(cfg.copy(), hooks=[Interrupt(iteration)])
    rest = cfg.copy()
    rest.pop('randomness', None)  # It is the checkpoint's.
    return run(rest, latest_checkpoint(cfg.work_dir))


WORKERS = dict(train_dataloader=dict(num_workers=2))
PERSISTENT = dict(train_dataloader=dict(num_workers=2, persistent_workers=True))
DEFAULT = dict(train_dataloader=dict(sampler=dict(type='DefaultSampler')))
EMA = dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)])
ACCUMULATION = dict(
    optim_wrapper=dict(accumulative_counts=2), default_hooks=dict(checkpoint=dict(interval=2))
)
CASES = {
    'iterations': (False, {}),
    'iterations, workers': (False, WORKERS),
    'iterations, persistent workers': (False, PERSISTENT),
    'iterations, passes': (False, DEFAULT),
    'iterations, passes, workers': (False, DEFAULT | WORKERS),
    'iterations, passes, persistent workers': (False, DEFAULT | PERSISTENT),
    'epochs': (True, {}),
    'epochs, workers': (True, WORKERS),
    'epochs, persistent workers': (True, PERSISTENT),
    'EMA': (False, EMA),
    'EMA, epochs': (True, EMA),
    'bfloat16': (False, dict(bf16=True)),
    'accumulation': (False, ACCUMULATION),
    'validation': (False, dict(train_cfg=dict(val_interval=1))),
}


@pytest.mark.parametrize(('by_epoch', 'changes'), CASES.values(), ids=CASES)
def test_interrupted_training_ends_as_another(tmp_path, by_epoch, changes):
    """In the middle of the second pass of 5 iterations."""
    until, iterations = (3, 15) if by_epoch else (12, 12)
    whole, parts = (
        config(tmp_path / name, by_epoch, until, **SEED, **changes) for name in ('whole', 'parts')
    )
    for cfg in (whole, parts):
        if cfg.pop('bf16', False):
            use_amp(cfg, 'bf16')
    run(whole)
    log = interrupted(parts, 8)
    assert f'iter: {6 if changes is ACCUMULATION else 7}' in log
    assert 'not exactly' not in log
    assert 'Advance' not in log
    a, b = (outcome(f'{cfg.work_dir}/iter_{iterations}.pth') for cfg in (whole, parts))
    assert a == b


@pytest.mark.parametrize('by_epoch', [False, True], ids=['iterations', 'epochs'])
@pytest.mark.parametrize('workers', [0, 2])
def test_resuming_reads_nothing_again(tmp_path, by_epoch, workers):
    """What was consumed, though the workers had read ahead."""
    notes = tmp_path / 'notes'
    loader = dict(num_workers=workers, dataset=dict(notes=str(notes)))
    loader['sampler'] = dict(type='DefaultSampler', shuffle=False)
    cfg = config(tmp_path, by_epoch, 2 if by_epoch else 10, train_dataloader=loader)
    with pytest.raises(KeyboardInterrupt):
        run(cfg.copy(), hooks=[Interrupt(8)])
    notes.unlink()
    run(cfg.copy(), tmp_path / 'iter_7.pth')
    expected = [4, 5, 6, 7, 8, 9]  # of the second pass, after two batches of 2
    read = [int(line) for line in notes.read_text().split()]
    # (Workers may have begun with another pass, and two of them read in any order.)
    assert sorted(read[:6]) == expected
    assert read == expected or workers


def test_what_is_random_differs_between_samples_and_iterations(tmp_path):
    seen = []

    class Watch(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.extend(data_batch['inputs'])
            seen.append(torch.rand(3, 32, 32))

    loader = dict(dataset=dict(length=2), sampler=dict(shuffle=False))
    run(config(tmp_path, train_dataloader=loader), hooks=[Watch()])
    assert len(seen) == 24
    noise = Counter(tensor.double().sum().item() for tensor in seen[1::3] + seen[2::3])
    assert len(noise) == 16


def test_the_number_of_workers_changes_nothing(tmp_path):
    for workers in (0, 2):
        run(config(tmp_path / str(workers), train_dataloader=dict(num_workers=workers), **SEED))
    assert outcome(tmp_path / '0/iter_8.pth') == outcome(tmp_path / '2/iter_8.pth')


def test_an_older_checkpoint_goes_on_inexactly(tmp_path):
    run(config(tmp_path, until=4))
    state = read(tmp_path / 'iter_4.pth')
    del state['exact_resume']
    torch.save(state, tmp_path / 'iter_4.pth')
    log = run(config(tmp_path, until=6), tmp_path / 'iter_4.pth')
    assert log.count('the checkpoint has no position in the data') == 1
    assert (tmp_path / 'iter_6.pth').exists()


def test_another_batch_size_is_said(tmp_path):
    run(config(tmp_path, until=4))
    cfg = config(tmp_path, until=6, train_dataloader=dict(batch_size=4))
    log = run(cfg, tmp_path / 'iter_4.pth')
    assert 'saved with batch_size 2 (now: 4): this is not exactly the training' in log
    assert (tmp_path / 'iter_6.pth').exists()


def test_gradients_between_two_updates_are_lost_with_a_warning(tmp_path):
    cfg = config(tmp_path, optim_wrapper=dict(accumulative_counts=2))
    log = interrupted(cfg, 6)
    assert 'iter: 5' in log
    assert 'the gradient of some iterations is lost' in log


def test_a_random_seed_is_kept_in_the_config_and_resumed(tmp_path):
    run(config(tmp_path, until=2))
    seed = read(tmp_path / 'iter_2.pth')['meta']['seed']
    run(config(tmp_path, until=4), tmp_path / 'iter_2.pth')
    assert read(tmp_path / 'iter_4.pth')['meta']['seed'] == seed
    assert f'seed={seed})' in max(tmp_path.glob('*.py')).read_text()
