"""Stops a training whose loss is NaN or infinite, and says where in the model that began."""

import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from unittest import mock

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tools.engine.runner import bare_model
from tools.engine.work_dir import latest_checkpoint
from tools.utils.errors import UserError

_MOST_NAMES = 8


class FiniteLossHook(Hook):
    """Ends a training in the iteration whose loss is not finite, before it changes the weights.

    The loss is compared with infinity on its device. The result is read when the optimizer is about
    to step: that waits for the forward alone, while the backward keeps the device busy, so an
    iteration takes no longer. (mmengine waits for the device at its end, to log the losses.) Where
    no step follows, as under accumulation or after infinite gradients of float16, which the loss
    scaling handles, it is read at the end of the iteration.

    Weights that became infinite by their gradients are found by the next loss, and are not saved.
    """

    priority = 'LOW'  # After the loggers, before CheckpointHook.

    def __init__(self) -> None:
        self._forward: _Forward | None = None
        self._handles: list = []

    def before_train(self, runner: Runner) -> None:
        def check(*_: object) -> None:
            self._check(runner)

        wrapper, model = runner.optim_wrapper, bare_model(runner.model)
        wrappers = wrapper.values() if hasattr(wrapper, 'values') else [wrapper]
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end),
            *(each.optimizer.register_step_pre_hook(check) for each in wrappers),
        ]

    def after_train(self, runner: Runner) -> None:
        for handle in self._handles:
            handle.remove()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        self._check(runner)
        self._forward = None  # It holds the batch.

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        for name, tensor in checkpoint['state_dict'].items():
            if not _is_finite(tensor):
                raise UserError(
                    f'{name} is not finite after iteration {runner.iter + 1}, by its gradient: no '
                    f'checkpoint is saved of it{_last_checkpoint(runner)}'
                )

    def _begin(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self._forward = _Forward(args, kwargs) if kwargs.get('mode') == 'loss' else None

    def _end(self, model: nn.Module, args: tuple, output: object) -> None:
        if self._forward is not None and isinstance(output, dict):
            loss, values = model.parse_losses(output)
            self._forward.finish(loss, values)

    def _check(self, runner: Runner) -> None:
        if self._forward is None or self._forward.is_finite():
            return
        forward, self._forward = self._forward, None
        values = {name: float(value) for name, value in forward.losses.items()}
        wrong = ', '.join(f'{k} {v}' for k, v in values.items() if not np.isfinite(v))
        raise UserError(
            f'iteration {runner.iter + 1}: the loss is not finite ({wrong}): '
            f'{find_origin(runner, forward)}; {_images(forward)}{_last_checkpoint(runner)}'
        )


class _Forward:
    """What a forward of a training was called with, and whether its loss is finite.

    Attributes:
        losses: By name, as mmengine logs them.
    """

    def __init__(self, args: tuple, kwargs: dict) -> None:
        self.args, self.kwargs = args, kwargs
        self.losses: dict[str, Tensor] = {}
        self._finite: Tensor | None = None
        cuda = torch.cuda.is_available()
        self._states: list[tuple[Callable, object]] = [
            (torch.set_rng_state, torch.get_rng_state()),
            (np.random.set_state, np.random.get_state()),  # noqa: NPY002 (the toolboxes' own)
            (random.setstate, random.getstate()),
            *([(torch.cuda.set_rng_state, torch.cuda.get_rng_state())] if cuda else []),
        ]

    def finish(self, loss: Tensor, losses: dict[str, Tensor]) -> None:
        """Note the loss; its comparison is queued on its device."""
        self.losses = {name: value.detach() for name, value in losses.items()}
        # On CUDA the copy is to pinned memory, and nothing waits for it here.
        self._finite = loss.detach().isfinite().all().to('cpu', non_blocking=True)
        self._copied = torch.cuda.Event() if loss.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def is_finite(self) -> bool:
        """Whether the loss is finite, or not known because the model returned none."""
        if self._finite is None:
            return True
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._finite)

    def restore_random_states(self) -> None:
        """Set the random states that the forward began with."""
        for set_state, state in self._states:
            set_state(state)

    @property
    def samples(self) -> list[BaseDataElement]:
        """The data samples of the batch."""
        return [s for s in self.kwargs.get('data_samples') or () if isinstance(s, BaseDataElement)]


class _FoundError(Exception):
    """Ends a forward at the first output that is not finite."""


def find_origin(runner: Runner, forward: _Forward) -> str:
    """Where the first value that is not finite is: in a weight, the images, or an output.

    For the outputs the forward is repeated, with the random numbers and in the precision that it
    had.
    """
    model = bare_model(runner.model)
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            return f'the weight {name} was not finite before this iteration'
    batches = [*forward.args, *forward.kwargs.values()]
    for images in (images for images in batches if not all(map(_is_finite, _tensors(images)))):
        paths = _paths(forward)
        wrong = [path for path, image in zip(paths, images, strict=False) if not _is_finite(image)]
        return f'the input is not finite{": " * bool(wrong)}{", ".join(wrong)}'

    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return 'its forward cannot be repeated with weights that are divided among processes'

    def check(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            if not all(map(_is_finite, _tensors(output))):
                raise _FoundError(name)

        return hook

    handles = [m.register_forward_hook(check(name)) for name, m in model.named_modules() if name]
    forward.restore_random_states()
    wrapper = runner.optim_wrapper
    context = wrapper.optim_context(model) if hasattr(wrapper, 'optim_context') else nullcontext()
    try:
        # The other processes do not repeat theirs: SyncBatchNorm would wait for them.
        alone = mock.patch('torch.distributed.is_initialized', return_value=False)
        eager = torch.compiler.set_stance('force_eager')
        with torch.no_grad(), alone, eager, context:
            model(*forward.args, **forward.kwargs)
    except _FoundError as found:
        kind = type(model.get_submodule(str(found))).__name__
        return f'the first output that is not finite is that of {found} ({kind})'
    finally:
        for handle in handles:
            handle.remove()
    return "all modules' outputs are finite"


def _is_finite(value: object) -> bool:
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return True
    if isinstance(value, DTensor):
        value = value.to_local()  # The other processes do not ask.
    return bool(value.isfinite().all())


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


def _paths(forward: _Forward) -> list[str]:
    return [str(sample.get('img_path', 'an image without a path')) for sample in forward.samples]


def _images(forward: _Forward) -> str:
    paths = _paths(forward)
    more = f' and {len(paths) - _MOST_NAMES} more' if len(paths) > _MOST_NAMES else ''
    process = f' (of process {get_rank()})' if torch.distributed.is_initialized() else ''
    return f'images{process}: {", ".join(paths[:_MOST_NAMES]) or "without paths"}{more}'


def _last_checkpoint(runner: Runner) -> str:
    path = latest_checkpoint(runner.work_dir)
    return f'; the last checkpoint is {path}' if path else '; there is no checkpoint before it'
