"""Saving checkpoints so that there is always a whole one: a disk may be full, a process killed."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from swinv2_backbone.checkpoints.files import atomic_file
from tools.utils.errors import UserError

# In the message hub: the checkpoint that was saved in the middle of the last epoch.
_MIDDLE = 'checkpoint_within_epoch'


class SafeCheckpointHook(CheckpointHook):
    """A CheckpointHook that deletes an older checkpoint when the next is on the disk.

    mmengine deletes first: if two saves fail, as on a full disk, none is left of two.

    Args:
        on_error: What to do if a checkpoint cannot be written: 'continue', and try again after the
            next interval, or 'stop'.
    """

    def __init__(self, *args, on_error: str = 'continue', **kwargs) -> None:
        if on_error not in ('continue', 'stop'):
            raise ValueError(f"on_error: got {on_error!r}, allowed: 'continue' or 'stop'")
        super().__init__(*args, **kwargs)
        self.on_error = on_error
        self.saved_iteration = -1

    def save_now(self, runner: Runner, iteration: int) -> str | None:
        """Save after this many iterations, if not done yet; returns the path if all is well."""
        if self.saved_iteration != iteration:
            meta = dict(epoch=runner.epoch, iter=iteration)
            if self.by_epoch:
                name = f'iter_{iteration}.pth'
                runner.message_hub.update_info(_MIDDLE, name)
                self._write(runner, name, meta, by_epoch=False)
            else:
                self._save_checkpoint_with_step(runner, iteration, meta)
        return self.last_ckpt if self.saved_iteration == iteration else None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> bool:
        """Save, then delete those that are too many; returns whether it went well."""
        hub, before = runner.message_hub, list(getattr(self, 'keep_ckpt_ids', ()))
        ids = [*(each for each in before if each != step), step]
        if self.max_keep_ckpts > 0:
            hub.update_info('keep_ckpt_ids', ids)  # A next training deletes what this one does not.
        name = self.filename_tmpl.format(step)
        middle = hub.runtime_info.pop(_MIDDLE, None)
        written = self._write(runner, name, meta, self.by_epoch)
        kept = (ids if written else before)[-self.max_keep_ckpts :]
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
            hub.update_info('keep_ckpt_ids', kept)
        if written:
            obsolete = [middle] if middle and middle != name else []
            if self.max_keep_ckpts > 0:
                obsolete += [self.filename_tmpl.format(each) for each in ids if each not in kept]
            self._remove(self.file_backend.join_path(self.out_dir, each) for each in obsolete)
        return written

    def _write(self, runner: Runner, name: str, meta: dict, by_epoch: bool) -> bool:
        """Write a checkpoint and then its name; returns whether it went well.

        Raises:
            UserError: If it did not, and the training is to stop.
        """
        before, self.last_ckpt = self.last_ckpt, self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        try:
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        except OSError as error:
            self.last_ckpt = before
            self._report(runner, name, error)
            return False
        self.saved_iteration = meta['iter']
        if is_main_process():
            with (
                suppress(OSError),
                atomic_file(Path(runner.work_dir, 'last_checkpoint')) as partial,
            ):
                Path(partial).write_text(self.last_ckpt)
        return True

    def _report(self, runner: Runner, name: str, error: OSError) -> None:
        """Say that a checkpoint was not written, or stop.

        Raises:
            UserError: If the training is to stop.
        """
        message = (
            f'{name} could not be saved: {error.strerror or error}; earlier checkpoints are whole'
        )
        if self.on_error == 'stop':
            raise UserError(f'{message}. Once there is room, --resume goes on') from error
        runner.logger.error(f'{message}. The training goes on, the next save is tried as usual')

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """As in CheckpointHook, which deletes the best checkpoint before it writes a better one."""
        hub = runner.message_hub.runtime_info
        keys = [key for key in hub if key.startswith(('best_score', 'best_ckpt'))]
        before, written = {key: hub[key] for key in keys}, True
        paths = {key: hub[key] for key in keys if key.startswith('best_ckpt')}
        self._set_best(dict.fromkeys(paths))
        try:
            super()._save_best_checkpoint(runner, metrics)
        except OSError as error:
            written = False
            for key in [key for key in hub if key.startswith(('best_score', 'best_ckpt'))]:
                hub.pop(key)
            hub.update(before)
            self._report(runner, 'the best checkpoint', error)
        now = {key: hub[key] for key in hub if key.startswith('best_ckpt')}
        self._set_best(now)
        if written:
            self._remove(path for key, path in paths.items() if path != now.get(key))

    def _set_best(self, paths: dict[str, str | None]) -> None:
        """Set the paths that CheckpointHook deletes, by their keys in the message hub."""
        for key, path in paths.items():
            if key == 'best_ckpt':
                self.best_ckpt_path = path
            elif hasattr(self, 'best_ckpt_path_dict'):
                self.best_ckpt_path_dict[key.removeprefix('best_ckpt_')] = path

    def _remove(self, paths: Iterable[str]) -> None:
        """Delete those checkpoints that are there."""
        for path in paths:
            if is_main_process() and path and self.file_backend.isfile(path):
                self.file_backend.remove(path)


def safe_checkpoint_hook(hook: dict) -> dict:
    """The config of a hook, with mmengine's CheckpointHook replaced by one that loses nothing."""
    kind = hook.get('type')
    kind = HOOKS.get(kind) if isinstance(kind, str) else kind
    return {**hook, 'type': SafeCheckpointHook} if kind is CheckpointHook else hook
