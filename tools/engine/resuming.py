"""Resuming: what a checkpoint restores, where it overrules the config, and what it must not do."""

import os.path as osp
import warnings
from collections import Counter
from pathlib import Path

from mmengine import fileio
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop, Runner

from tools.utils.errors import UserError

# Of the state of a parameter group or a scheduler, what is no setting.
_NO_SETTINGS = {
    *('params', 'param_names'),
    *('last_step', '_global_step', '_last_value', 'base_values', 'verbose'),
}


def prepare_resume(runner: Runner, checkpoint: dict) -> None:
    """Check the state of a training before a Runner restores it, and adapt it, in place.

    Raises:
        UserError: If the state lacks a part, or is of another kind of optimizer or schedule.
    """
    required = ['meta', 'message_hub', 'optimizer']
    required += ['param_schedulers'] if runner.param_schedulers else []
    missing = [key for key in required if key not in checkpoint]
    if missing:  # mmengine would start these anew, in the middle of the training.
        raise UserError(
            'the checkpoint has weights alone, no state of a training to resume '
            f'(it lacks {", ".join(missing)}); to start from its weights, set load_from'
        )
    checkpoint['meta'].pop('config', None)  # mmengine would run it; it saves none itself.
    _keep_to_own_folder(runner, checkpoint['message_hub'])
    if not isinstance(runner.optim_wrapper, OptimWrapperDict):
        _reconcile(runner, checkpoint)


# --- files ----------------------------------------------------------------------------------------


def _keep_to_own_folder(runner: Runner, hub: dict) -> None:
    """Point the restored state at checkpoints in the folder that this training saves to.

    mmengine deletes what the state names as its best and its older checkpoints. If the resumed
    file is from another folder, these are another training's. If the folder was moved or copied,
    the paths are the old ones.
    """
    info = hub['runtime_info']
    for hook in (hook for hook in runner.hooks if isinstance(hook, CheckpointHook)):
        folder = runner.work_dir
        if hook.out_dir not in (None, folder):  # as in CheckpointHook.before_train
            folder = fileio.join_path(hook.out_dir, osp.basename(folder.rstrip(osp.sep)))
        elsewhere = Path(runner.cfg.load_from).resolve().parent != Path(folder).resolve()
        if elsewhere:
            info.pop('keep_ckpt_ids', None)
        for key in [key for key in info if key.startswith('best_ckpt')]:
            own = fileio.join_path(folder, osp.basename(info[key]))
            if not elsewhere and fileio.isfile(own):
                info[key] = own
            else:
                score = info.get(key.replace('best_ckpt', 'best_score'))
                runner.logger.info(f'the best so far, {info.pop(key)} with {score:g}, stays there')
    kept = info.keys() | hub['log_scalars'].keys()
    hub['resumed_keys'] = {key: on for key, on in hub['resumed_keys'].items() if key in kept}


# --- optimizer and schedule -----------------------------------------------------------------------


def _reconcile(runner: Runner, checkpoint: dict) -> None:
    """Say in one line where the checkpoint overrules the config, and extend its schedule.

    The schedule of the config is taken if it is longer along with the training.

    Raises:
        UserError: If the state is of another kind of optimizer or schedule.
    """
    groups, saved_groups = runner.optim_wrapper.param_groups, _saved_groups(checkpoint)
    _same_number('optimizer', 'parameter groups', saved_groups, groups)
    differences: dict[str, str] = {}
    for saved, own in zip(saved_groups, groups, strict=True):
        differences |= _differences('optimizer', '', saved, own, True)

    before = checkpoint['message_hub']['runtime_info']
    unit = 'iters' if isinstance(runner.train_loop, IterBasedTrainLoop) else 'epochs'
    old, new = before.get(f'max_{unit}'), getattr(runner, f'max_{unit}')
    longer = old is not None and old < new
    schedulers = runner.param_schedulers or []
    saved_schedulers = checkpoint.get('param_schedulers', [])
    span = f'from {old} to {new} {unit.replace("iters", "iterations")}'
    if longer and _extended(runner, before, saved_schedulers):
        _replay(runner, checkpoint)
        runner.logger.info(f'the schedule is extended {span}, as in the config')
    else:
        _same_number('param_scheduler', 'schedulers', saved_schedulers, schedulers)
        for i, (saved, own) in enumerate(zip(saved_schedulers, schedulers, strict=True)):
            if not _follows_metric(own):
                name = f'param_scheduler[{i}]'
                differences |= _differences(name, f'{name}.', saved, own.state_dict(), False)
        if longer and schedulers:
            runner.logger.warning(
                f'the training is extended {span}, the schedule is not: to extend it, too, set the '
                'end of its last part to that of the training'
            )
    if differences:
        runner.logger.warning(
            f'the checkpoint overrules the config: {", ".join(differences.values())}; to train '
            "with the config's, start from the weights: set load_from instead"
        )


def _saved_groups(checkpoint: dict) -> list[dict]:
    """The parameter groups in a checkpoint, as OptimWrapper.param_groups has them.

    If there are several, the last is of no parameter: it has the settings of the config.
    """
    base = checkpoint['optimizer'].get('base_param_settings')
    return checkpoint['optimizer']['param_groups'] + ([base] if base else [])


def _same_number(name: str, things: str, saved: list, own: list) -> None:
    if len(saved) != len(own):
        raise UserError(
            f'--resume: {name}: the checkpoint has {len(saved)} {things}, the config {len(own)}'
        )


def _differences(name: str, prefix: str, saved: dict, own: dict, optional: bool) -> dict[str, str]:
    """What differs between two states, as text by setting.

    Args:
        optional: Whether one of the two may have more settings, as of a newer torch.

    Raises:
        UserError: If the settings are not the same ones.
    """
    saved, own = _settings(saved), _settings(own)
    only_saved, only_own = (
        ', '.join(sorted(a.keys() - b.keys())) or 'none' for a, b in ((saved, own), (own, saved))
    )
    missing = [only for only in (only_saved, only_own) if only != 'none']
    if len(missing) > optional:
        raise UserError(
            f'--resume: {name}: the checkpoint has {only_saved}, the config {only_own}: '
            'they are of different types'
        )
    return {
        prefix + key: f'{prefix}{key} {_text(saved[key])} (config: {_text(own[key])})'
        for key in saved
        if key in own and saved[key] != own[key]
    }


def _settings(state: dict) -> dict:
    """The settings in the state of a parameter group or a scheduler; of those that a schedule
    changes, the initial values."""
    initial = {k.removeprefix('initial_'): v for k, v in state.items() if k.startswith('initial_')}
    rest = {
        key: value
        for key, value in state.items()
        if key not in _NO_SETTINGS and not key.startswith('initial_')
    }
    return rest | initial


def _text(value: object) -> str:
    if isinstance(value, Counter):  # milestones
        return str(sorted(value.elements()))
    return f'{value:g}' if isinstance(value, float) else str(value)


def _extended(runner: Runner, before: dict, saved_schedulers: list[dict]) -> bool:
    """Whether a scheduler ended with the training, and still does now that that is longer."""
    if any(_follows_metric(own) for own in runner.param_schedulers or []):
        return False  # It cannot be replayed.
    for saved, own in zip(saved_schedulers, runner.param_schedulers or [], strict=False):
        key = 'max_epochs' if own.by_epoch else 'max_iters'
        if saved['by_epoch'] == own.by_epoch and saved['end'] == before[key]:
            return own.end == getattr(runner, key)
    return False


def _follows_metric(scheduler: object) -> bool:
    """Whether a scheduler's state is mostly what it measured, as ReduceOnPlateauLR's."""
    return getattr(scheduler, 'need_val_args', False)


def _replay(runner: Runner, checkpoint: dict) -> None:
    """Put into a checkpoint what the config's schedule gives after as many steps.

    The recursive formulas of mmengine go on from the last value. That of a schedule which has
    ended is often zero, and would stay so.
    """
    iters, epochs = checkpoint['meta']['iter'], checkpoint['meta']['epoch']
    groups, saved_groups = runner.optim_wrapper.param_groups, _saved_groups(checkpoint)
    names = {scheduler.param_name for scheduler in runner.param_schedulers}
    for own, saved in zip(groups, saved_groups, strict=True):
        for name in names:
            own[name] = own[f'initial_{name}'] = saved.get(f'initial_{name}', saved[name])
    length, done = len(runner.train_dataloader), 0
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # No optimizer steps between.
        schedulers = runner.build_param_scheduler(runner.cfg.param_scheduler)
        for i in range(1, iters + 1):
            _step(schedulers, by_epoch=False)
            if i % length == 0 and done < epochs:
                _step(schedulers, by_epoch=True)
                done += 1
        for _ in range(done, epochs):  # The epochs were shorter, with other data or batches.
            _step(schedulers, by_epoch=True)
    runner.param_schedulers = schedulers
    checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]
    for own, saved in zip(groups, saved_groups, strict=True):
        saved.update({name: own[name] for name in names})


def _step(schedulers: list, by_epoch: bool) -> None:
    for scheduler in schedulers:
        if scheduler.by_epoch == by_epoch:
            scheduler.step()
