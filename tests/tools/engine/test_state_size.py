"""A training logs once what it holds in memory, with one optimizer or several."""

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from torch.optim import SGD

from tests.helpers.toy_training import ToyModel, config, run
from tools.engine.finite import FiniteLossHook
from tools.engine.preemption import PreemptionHook
from tools.engine.state_size import StateSizeHook


@MODELS.register_module(force=True)
class ToyOfTwoOptimizers(ToyModel):
    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        loss, losses = self.parse_losses(self._run_forward(data, mode='loss'))
        loss.backward()
        for wrapper in optim_wrapper.values():
            wrapper.step()
            wrapper.zero_grad()
        return losses


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class TwoOptimizers:
    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        pass

    def __call__(self, model):
        wrappers = {
            name: OptimWrapper(SGD([parameter], lr=0.1, momentum=0.9))
            for name, parameter in model.named_parameters()
        }
        return OptimWrapperDict(**wrappers)


def test_several_optimizers(tmp_path):
    cfg = config(tmp_path, until=4, model=dict(type='ToyOfTwoOptimizers'))
    cfg.optim_wrapper = dict(constructor='TwoOptimizers')
    cfg.param_scheduler = None
    hooks = FiniteLossHook, StateSizeHook, PreemptionHook
    log = run(cfg.copy(), hooks=[hook() for hook in hooks])
    assert log.count('state per process: parameters 0.0 MB, gradients 0.0 MB, optimizer') == 1
    log = run(cfg, tmp_path / 'iter_2.pth', hooks=[hook() for hook in hooks])
    assert 'resumed epoch: 0, iter: 2' in log
