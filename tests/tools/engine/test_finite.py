"""A training whose loss is not finite ends, says where that began, and saves nothing of it."""

import math

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from torch import nn

from swinv2_backbone.compat import safe_mmengine_globals
from tests.helpers.scripts import error_line, free_port, isolated, start_shell
from tests.helpers.toy_training import ToyModel, config, optimizer, run
from tools.engine.finite import FiniteLossHook
from tools.engine.runner import execute
from tools.engine.work_dir import AtomicRunner, latest_checkpoint
from tools.utils.errors import UserError

TASKS = ('segmentation', 'detection')


class At(Hook):
    """Does something to a runner and a batch before an iteration, counted from 1."""

    priority = 'VERY_HIGH'

    def __init__(self, iteration, action):
        self.iteration, self.action = iteration, action

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            self.action(runner, data_batch)


def spoil_weight(runner, batch):
    runner.model.linear.weight.data.fill_(math.nan)


def spoil_input(runner, batch):
    batch['inputs'] = [torch.full((1,), math.inf)]


def refused(cfg, *hooks):
    """The message with which a toy training ends."""
    with pytest.raises(UserError) as ended:
        run(cfg, hooks=[FiniteLossHook(), *hooks])
    assert '\n' not in str(ended.value)
    return str(ended.value)


def assert_saved(work_dir, *names):
    """These are the checkpoints of a work dir, and their weights are finite."""
    assert sorted(path.name for path in work_dir.glob('*.pth')) == sorted(names)
    for name in names:
        with safe_mmengine_globals():
            state = torch.load(work_dir / name, weights_only=True)['state_dict']
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_finite_training_is_left_alone(tmp_path):
    run(config(tmp_path), hooks=[FiniteLossHook()])
    assert (tmp_path / 'iter_8.pth').exists()


def test_weights_that_diverge(tmp_path):
    message = refused(config(tmp_path, optim_wrapper=optimizer(lr=1e12, momentum=0.0)))
    assert message.startswith('iteration 3: the loss is not finite (loss inf')
    assert "all modules' outputs are finite" in message, 'their square is not'
    assert message.endswith(f'the last checkpoint is {tmp_path}/iter_2.pth')
    assert_saved(tmp_path, 'iter_2.pth')


def test_weight_that_is_not_finite(tmp_path):
    message = refused(config(tmp_path), At(4, spoil_weight))
    assert 'iteration 4: the loss is not finite (loss nan): the weight linear.weight' in message
    assert_saved(tmp_path, 'iter_2.pth')


@pytest.mark.parametrize('accumulated', [1, 3])
def test_input_that_is_not_finite(tmp_path, accumulated):
    wrapper = {**optimizer(), 'accumulative_counts': accumulated}
    message = refused(config(tmp_path, optim_wrapper=wrapper), At(5, spoil_input))
    assert 'iteration 5: the loss is not finite (loss inf): the input is not finite' in message
    assert_saved(tmp_path, 'iter_2.pth', 'iter_4.pth')


class Noise(nn.Module):
    def forward(self, x):
        return x / (torch.rand(1) > 0.5)


@MODELS.register_module(force=True)
class RandomToy(ToyModel):
    def __init__(self):
        super().__init__()
        self.noise = Noise()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return super().forward(list(self.noise(torch.stack(inputs))), data_samples, mode)


def test_forward_is_repeated_with_its_random_numbers(tmp_path):
    """Of the iterations half are without fault, so that other numbers would not show it."""
    for seed in range(8):
        cfg = config(tmp_path / str(seed), model=dict(type='RandomToy'), randomness=dict(seed=seed))
        assert 'not finite is that of noise (Noise); images: without paths' in refused(cfg)


@MODELS.register_module(force=True)
class SteepToy(ToyModel):
    """Its loss is finite, the gradient of its weights is not."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        output = self.linear(torch.stack(inputs))
        return dict(loss=(output * 0).sqrt().mean()) if mode == 'loss' else [output]


def test_weights_that_became_infinite_are_not_saved(tmp_path):
    cfg = config(tmp_path, model=dict(type='SteepToy'))
    cfg.default_hooks.checkpoint.interval = 1
    assert 'is not finite after iteration 1, by its gradient: no checkpoint' in refused(cfg)
    assert_saved(tmp_path)
    cfg.default_hooks.checkpoint.interval = 2
    assert 'iteration 2: the loss is not finite (loss nan): the weight linear.' in refused(cfg)
    assert_saved(tmp_path)


def test_weights_that_another_process_has_are_not_saved_either(tmp_path, monkeypatch):
    """Only the first saves, and checks; of weights that are divided it has but a part."""
    save = AtomicRunner.save_checkpoint

    def save_gathered(runner, *args, **kwargs):
        whole = dict.fromkeys(runner.model.state_dict(), torch.full((1, 1), math.inf))
        runner.whole_state = dict(state_dict=whole)
        save(runner, *args, **kwargs)

    def train(runner):
        runner.register_hook(FiniteLossHook())  # with its own priority, as in train.py
        runner.train()

    monkeypatch.setattr(AtomicRunner, 'save_checkpoint', save_gathered)
    with (
        isolated(),
        pytest.raises(UserError, match=r'linear\.weight is not finite after iteration'),
    ):
        execute(config(tmp_path), train, strict=True)
    assert_saved(tmp_path)


@OPTIM_WRAPPERS.register_module(force=True)
class ScaledWrapper(OptimWrapper):
    """mmengine's AmpOptimWrapper requires a GPU. Gradients overflow with this initial scale."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scaler = torch.amp.GradScaler('cpu', init_scale=2.0**128 * (1 - 2.0**-24))

    def backward(self, loss, **kwargs):
        self.scaler.scale(loss * 16).backward()
        self._inner_count += 1

    def step(self, **kwargs):
        self.scaler.step(self.optimizer)
        self.scaler.update()


def test_infinite_gradients_of_scaled_losses_are_no_fault(tmp_path):
    """The scaler leaves out the step, and halves the scale."""
    wrapper = {**optimizer(), 'type': 'ScaledWrapper'}
    skipped = []

    class Count(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            skipped.append(not runner.optim_wrapper.optimizer.state)

    run(config(tmp_path / 'scaled', optim_wrapper=wrapper), hooks=[FiniteLossHook(), Count()])
    assert skipped[0]
    assert not skipped[-1]
    message = refused(config(tmp_path / 'nan', optim_wrapper=wrapper), At(1, spoil_input))
    assert message.startswith('iteration 1: the loss is not finite (loss inf)')


# --- both toolboxes -------------------------------------------------------------------------------

CAUSES = {
    'weight': (['load_from={spoiled}'], 'the weight backbone.layers.0.blocks.0.mlp.fc1.weight was'),
    'input': (['model.data_preprocessor.std=[0.0,1.0,1.0]'], 'the input is not finite: {data}'),
    'divergence': (
        ['optim_wrapper.optimizer.lr=1e30', 'param_scheduler=[]', 'optim_wrapper.clip_grad=None'],
        'the first output that is not finite is that of backbone.',
    ),
}


@pytest.mark.parametrize('cause', CAUSES)
@pytest.mark.parametrize('task', TASKS)
def test_toolboxes(tasks, tmp_path, capsys, task, cause):
    from tools import train

    spoiled = tmp_path / 'spoiled.pth'
    content = torch.load(tasks.checkpoints[task], weights_only=True)
    content['state_dict']['backbone.layers.0.blocks.0.mlp.fc1.weight'][0, 0] = math.nan
    torch.save(content, spoiled)
    options, expected = CAUSES[cause]
    names = dict(spoiled=spoiled, data=tasks.data)
    options = [option.format(**names) for option in options]
    work_dir = tmp_path / 'work'
    arguments = tasks.configs[task], '--work-dir', work_dir, '--cfg-options', *options
    message = error_line(capsys, train.main, *arguments, 'default_hooks.checkpoint.interval=1')
    assert 'train.py: error: iteration ' in message
    assert expected.format(**names) in message
    images = message.partition('; images: ')[2].partition(';')[0].split(', ')
    assert len(images) == 2
    assert all(image.startswith(str(tasks.data)) for image in images)
    latest = latest_checkpoint(work_dir)
    assert (latest is not None) == (cause == 'divergence')
    assert latest is None or message.endswith(f'the last checkpoint is {latest}')


@pytest.mark.slow
def test_two_processes(tasks, tmp_path):
    """The one whose loss is not finite ends both; nothing waits for the other."""
    config = tmp_path / 'two.py'
    config.write_text(
        f"_base_ = '{tasks.configs['segmentation']}'\n"
        'model = dict(data_preprocessor=dict(std=[0.0, 1.0, 1.0]))\n'
    )
    arguments = config, 2, '--work-dir', tmp_path / 'work'
    process = start_shell('tools/dist_train.sh', *arguments, MASTER_PORT=free_port())
    output = process.communicate(timeout=200)[0]
    assert process.returncode
    assert 'error: iteration 1: the loss is not finite' in output
    assert 'images (of process ' in output
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_bfloat16(tasks, tmp_path, capsys, monkeypatch):
    """The forward is repeated under autocast."""
    from mmseg.models import UPerHead

    from tools import train

    seen, forward = [], UPerHead.forward

    def overflow(head, inputs):
        logits = forward(head, inputs)
        seen.append(logits.dtype)
        return logits * math.inf

    monkeypatch.setattr('tools.engine.amp.get_device', lambda: 'cpu')
    monkeypatch.setattr(UPerHead, 'forward', overflow)
    arguments = tasks.configs['segmentation'], '--work-dir', tmp_path, '--amp'
    message = error_line(capsys, train.main, *arguments)
    assert seen == [torch.bfloat16] * 2
    assert 'the first output that is not finite is that of decode_head.' in message
