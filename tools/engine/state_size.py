"""How much memory the state of a training takes in each process, measured in the training."""

from collections.abc import Iterable

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.distributed.tensor import DTensor


class StateSizeHook(Hook):
    """Logs once what a process holds: bytes of parameters, gradients and optimizer state.

    Gradients are counted when the optimizer steps; afterwards there are none. Of a training in
    several processes, the largest of them counts.
    """

    def __init__(self) -> None:
        self._gradients: int | None = None

    def before_train(self, runner: Runner) -> None:
        def count(optimizer: torch.optim.Optimizer, *args) -> None:
            self._gradients = _size(p.grad for p in runner.model.parameters())

        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if hasattr(wrapper, 'values') else [wrapper]
        self._optimizers = [each.optimizer for each in wrappers]
        # They are removed after the step: torch goes through its hooks there.
        self._handles = [each.register_step_pre_hook(count) for each in self._optimizers]

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        if self._gradients is None:
            return
        for handle in self._handles:
            handle.remove()
        # ZeroRedundancyOptimizer holds the optimizer of its part of the parameters.
        inner = [getattr(optimizer, 'optim', optimizer) for optimizer in self._optimizers]
        state = [each for optimizer in inner for each in optimizer.state.values()]
        parts = dict(
            parameters=_size(runner.model.parameters()),
            gradients=self._gradients,
            optimizer=_size(value for each in state for value in each.values()),
        )
        self._gradients = None
        sizes = torch.tensor([*parts.values()], dtype=torch.float64)
        if runner.distributed:
            sizes = sizes.to(next(runner.model.parameters()).device)
            torch.distributed.all_reduce(sizes, torch.distributed.ReduceOp.MAX)
        text = ', '.join(
            f'{name} {size / 1e6:.1f} MB' for name, size in zip(parts, sizes.tolist(), strict=True)
        )
        runner.logger.info(f'state per process: {text}')


def _size(values: Iterable[object]) -> int:
    """The bytes that tensors take in this process."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)
