"""How a training is divided among processes: DistributedDataParallel, ZeRO-1, FSDP2.

Whatever the strategy, a checkpoint is that of a training in one process: whole tensors, the
optimizer's state by the index of the parameter. So each resumes in any of the others.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from tools.engine.launching import init_without_accelerator
from tools.engine.work_dir import AtomicRunner
from tools.utils.errors import UserError

_FRAGMENTS = Path(__file__).parents[2] / 'configs' / '_base_' / 'strategies'
STRATEGIES = tuple(sorted(path.stem for path in _FRAGMENTS.glob('*.py')))


def use_strategy(cfg: Config, name: str) -> None:
    """Put one of `configs/_base_/strategies/` in the place of a config's own strategy."""
    for key in ('model_wrapper_cfg', 'shard_optimizer'):
        cfg.pop(key, None)
    cfg.merge_from_dict(Config.fromfile(_FRAGMENTS / f'{name}.py').to_dict())


@MODEL_WRAPPERS.register_module()
class FullyShardedModel(nn.Module):
    """A model whose parameters are divided among all processes while it is trained.

    It stays whole until :meth:`shard`, so that it is initialized as in one process, and tested
    without communication.

    Args:
        module: The model.
        units: Names of the classes whose modules are gathered one at a time; what is in none of
            them is gathered for the whole forward and backward.
        outside: Parameters of a unit, by a part of their name, that are read outside of its
            forward. They do not belong to the unit.
        options: Of :func:`torch.distributed.fsdp.fully_shard`.
    """

    def __init__(
        self, module: nn.Module, units: Sequence[str], outside: Sequence[str] = (), **options
    ) -> None:
        super().__init__()
        self.module, self.options = module, options
        self.units, self.outside = frozenset(units), frozenset(outside)

    def shard(self) -> None:
        """Divide the parameters.

        Raises:
            UserError: If a class of `units` is not in the model.
        """
        modules = [*self.module.modules()]
        unknown = self.units - {type(module).__name__ for module in modules}
        if unknown:
            raise UserError(f'model_wrapper_cfg: units: the model has no {", ".join(unknown)}')
        units = [module for module in modules if type(module).__name__ in self.units]
        inside = {p for unit in units for name, p in unit.named_parameters() if self._inside(name)}
        # The model first: afterwards the units would hide their other parameters from it.
        fully_shard(self.module, ignored_params=inside, **self.options)
        for unit in units:
            fully_shard(unit, ignored_params={*unit.parameters()} - inside, **self.options)

    def _inside(self, name: str) -> bool:
        return self.outside.isdisjoint(name.split('.'))

    def forward(self, *args, **kwargs) -> Any:
        return self.module(*args, **kwargs)

    def train_step(self, data: dict | tuple | list, optim_wrapper: OptimWrapper) -> dict:
        return self.module.train_step(data, optim_wrapper)

    def val_step(self, data: dict | tuple | list) -> list:
        return self.module.val_step(data)

    def test_step(self, data: dict | tuple | list) -> list:
        return self.module.test_step(data)


class DistributedRunner(AtomicRunner):
    """A Runner for one process or several, on accelerators or CPUs, with any strategy."""

    whole_state: dict

    def setup_env(self, env_cfg: dict) -> None:
        """As in Runner, also without an accelerator."""
        if self.distributed:
            init_without_accelerator(self.launcher, env_cfg.get('dist_cfg', {}))
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """As in Runner, also without an accelerator."""
        if self.distributed and get_device() == 'cpu':
            model_wrapper_cfg = model_wrapper_cfg or dict(broadcast_buffers=False)
            if model_wrapper_cfg.get('type') != 'FullyShardedModel':
                model_wrapper_cfg['device_ids'] = None  # mmengine's default is a GPU.
        return super().wrap_model(model_wrapper_cfg, model)

    def build_optim_wrapper(self, optim_wrapper: dict | OptimWrapper) -> OptimWrapper:
        """As in Runner, with the optimizer's state divided if the config has `shard_optimizer`."""
        if self._shards_optimizer and not isinstance(optim_wrapper, OptimWrapper):
            optim_wrapper = with_sharded_optimizer(optim_wrapper)
        return super().build_optim_wrapper(optim_wrapper)

    @property
    def _shards_optimizer(self) -> bool:
        return self.distributed and self.cfg.get('shard_optimizer', False)

    @property
    def _shards_model(self) -> bool:
        return isinstance(self.model, FullyShardedModel)

    def train(self) -> nn.Module:
        """As in Runner; the model is divided after its initialization.

        Raises:
            UserError: If it cannot be divided, or a hook would copy it.
        """
        if self._shards_model:
            if any(isinstance(hook, EMAHook) for hook in self.hooks):
                raise UserError(
                    'custom_hooks: EMAHook copies the model, which fsdp2 divides; allowed with '
                    'EMAHook: --strategy ddp or zero1'
                )
            super()._init_model_weights()
            self.model.shard()
        return super().train()

    def _init_model_weights(self) -> None:
        if not self._shards_model:
            super()._init_model_weights()

    def save_checkpoint(self, *args, save_optimizer: bool = True, **kwargs) -> None:
        """As in Runner. All processes call it, and together gather what is divided."""
        self.whole_state = {}
        if self._shards_model:
            model = self.model.module.state_dict()
            model.update(_whole(dict(model)))  # In place: it has metadata as an attribute.
            self.whole_state['state_dict'] = model
        if save_optimizer and (self._shards_model or self._shards_optimizer):
            self.whole_state['optimizer'] = _whole(self.optim_wrapper.state_dict())
            save_optimizer = False
        super().save_checkpoint(*args, save_optimizer=save_optimizer, **kwargs)
        self.whole_state = {}


class WholeStateHook(Hook):
    """Puts whole tensors into checkpoints that are saved, before other hooks look at them."""

    priority = 'HIGHEST'

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint.update(runner.whole_state)


class DividedStateHook(Hook):
    """Divides the whole tensors of checkpoints that are loaded, after other hooks' checks."""

    priority = 'LOWEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        parameters = dict(model.named_parameters())
        weights = checkpoint.get('state_dict', checkpoint)
        for key, value in weights.items():
            parameter = parameters.get(key.removeprefix('module.'))
            if isinstance(parameter, DTensor):
                weights[key] = _divide(value, parameter)
        if runner.cfg.get('resume') and isinstance(runner.model, FullyShardedModel):
            groups = runner.optim_wrapper.optimizer.param_groups
            ordered = [parameter for group in groups for parameter in group['params']]
            state = checkpoint['optimizer']['state']
            for index, parameter in enumerate(ordered):
                if isinstance(parameter, DTensor) and index in state:
                    state[index] = {k: _divide(v, parameter) for k, v in state[index].items()}


def _whole(state: dict) -> dict:
    """A state with whole tensors on the CPU; a collective operation."""
    return tree_map_only(DTensor, lambda tensor: tensor.full_tensor().cpu(), state)


def _divide(value: Any, parameter: DTensor) -> Any:
    """A whole tensor divided like a parameter; anything else as it is."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value  # As Adam's count of steps.
    value = value.to(parameter.device)
    mesh, placements = parameter.device_mesh, parameter.placements
    # Each process has the whole tensor, so none has to send it.
    return distribute_tensor(value, mesh, placements, src_data_rank=None)


def with_sharded_optimizer(optim_wrapper: dict) -> dict:
    """The settings of an optimizer wrapper with mmengine's ZeroRedundancyOptimizer around its own.

    Raises:
        UserError: If its optimizer is not torch's.
    """
    optim_wrapper = deepcopy(optim_wrapper)
    name = optim_wrapper['optimizer'].pop('type')
    if not isinstance(name, str) or not hasattr(torch.optim, name):
        raise UserError(f'shard_optimizer: optimizer.type is {name!r}, allowed: one of torch.optim')
    optim_wrapper['optimizer'].update(type='ZeroRedundancyOptimizer', optimizer_type=name)
    return optim_wrapper
