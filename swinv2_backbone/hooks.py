"""A hook of mmengine that keeps cached values up to date."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .swin_transformer_v2 import SwinTransformerV2


@HOOKS.register_module()
class ClearCachesHook(Hook):
    """Empty the caches of backbones after validation and test, for use beside EMAHook.

    On a GPU, a backbone does not notice that mmengine's EMAHook swaps weights. Before validation
    and test that makes no difference: mmengine calls ``eval()`` next, which empties the caches.
    After them, nothing follows but ``train()``, if the training goes on. This hook is for scripts
    that go on to use ``runner.model`` as it is::

        custom_hooks = [dict(type='EMAHook'), dict(type='swinv2_backbone.ClearCachesHook')]
    """

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._clear(runner)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._clear(runner)

    def _clear(self, runner: Runner) -> None:
        for module in runner.model.modules():
            if isinstance(module, SwinTransformerV2):
                module.clear_caches()
