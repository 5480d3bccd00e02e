"""Layer-wise decay of the learning rate, for fine-tuning."""

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from .swin_transformer_v2 import SwinTransformerV2

# Parameters of the backbone without weight decay, besides norms and biases. (mmengine's rules miss
# them: q_bias and v_bias are not called `bias`, logit_scale is three-dimensional.)
NEVER_DECAYED = frozenset({'logit_scale', 'cpb_mlp', 'q_bias', 'v_bias'})
RATE = 'layer_decay_rate'
_NORM_AND_BIAS_RULES = ('norm_decay_mult', 'bias_decay_mult', 'flat_decay_mult')
# The options that mmengine's constructor reads from paramwise_cfg.
MMENGINE_KEYS = (
    'custom_keys',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'dwconv_decay_mult',
    'flat_decay_mult',
    'dcn_offset_lr_mult',
    'bypass_duplicate',
)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SwinV2LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise decay: the learning rate decreases from the last layer to the first.

    The learning rate of a layer (see :meth:`SwinTransformerV2.get_layer_depth`) is
    ``layer_decay_rate`` times that of the next one. The output norms, and all parameters outside
    of the backbone, have the optimizer's learning rate. No weight decay applies to norms and
    biases (all one-dimensional parameters), nor to the backbone's ``logit_scale``, ``cpb_mlp``,
    ``q_bias`` and ``v_bias``. mmengine's options apply on top: an ``lr_mult`` of ``custom_keys``
    multiplies the learning rate, a ``decay_mult`` takes precedence over the above, and with
    ``norm_decay_mult``, ``bias_decay_mult`` or ``flat_decay_mult``, mmengine's rules decide on the
    weight decay of norms and biases.

    ::

        optim_wrapper = dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=4e-5, weight_decay=0.05),
            constructor='swinv2_backbone.SwinV2LayerDecayConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.95))

    Args:
        optim_wrapper_cfg: As in mmengine; the optimizer has ``lr`` and ``weight_decay``.
        paramwise_cfg: ``layer_decay_rate``, above 0 and at most 1, and mmengine's options.

    Raises:
        TypeError, ValueError: If an option is missing, unknown or out of range; when called, if
            the model has no SwinTransformerV2, or one with a parameter that is in no layer.

    Source:
        BEiT (arXiv 2106.08254) for the decay; SwinV2 (arXiv 2111.09883), appendix, for its use
        with UperNet.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        super().__init__(optim_wrapper_cfg, dict(paramwise_cfg or {}))

    def _validate_cfg(self) -> None:
        unknown = set(self.paramwise_cfg) - {RATE, *MMENGINE_KEYS}
        if unknown:
            raise ValueError(
                f'paramwise_cfg: got the keys {sorted(unknown)}, allowed: '
                f'{", ".join((RATE, *MMENGINE_KEYS))}'
            )
        rate = self.paramwise_cfg.get(RATE)
        if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not 0 < rate <= 1:
            raise ValueError(
                f"paramwise_cfg['{RATE}']: got {rate!r}, allowed: a number above 0 and at most 1"
            )
        for key, value in (('lr', self.base_lr), ('weight_decay', self.base_wd)):
            if value is None:
                raise ValueError(
                    f'optimizer: got no {key}; it is required, because it differs '
                    'from parameter to parameter'
                )
        super()._validate_cfg()

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: bool | None = None,
    ) -> None:
        """Fill `params` with the parameter groups of a model, as mmengine requires."""
        super().add_params(params, module, prefix, is_dcn_module)
        if not prefix:  # mmengine calls this method for all children, too.
            params[:] = self._by_layer(params, module)
            print_log(describe(params), logger='current')

    def _by_layer(self, params: list[dict], model: nn.Module) -> list[dict]:
        """Parameter groups of a model, one for all parameters of the same layer and settings."""
        backbones = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, SwinTransformerV2)
        }
        if not backbones:
            raise ValueError(
                f'{type(self).__name__}: the model ({type(model).__name__}) has no '
                'SwinTransformerV2'
            )
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups: dict = {}
        seen = set()
        for single in params:
            (parameter,) = single['params']
            name = names[parameter]
            if parameter in seen:
                raise ValueError(
                    f'{name}: is shared by several modules; with bypass_duplicate=True in '
                    'paramwise_cfg, it is optimized once'
                )
            seen.add(parameter)
            path = next((p for p in backbones if name.startswith(p and f'{p}.')), None)
            layer, scale, label = 0, 1.0, 'others'
            if path is not None:
                layer, count = backbones[path].get_layer_depth(name, path and f'{path}.')
                scale = self.paramwise_cfg[RATE] ** (count - 1 - layer)
                label = f'{path} layer {layer}'.strip()
            settings = self._settings(single, name, inside=path is not None)
            settings['lr'] *= scale
            # In the order of the layers; what is outside of the backbone comes last.
            key = (path is None, path or '', layer, repr(sorted(settings.items())))
            group = {**settings, 'params': [], 'name': label, 'lr_scale': scale}
            groups.setdefault(key, group)['params'].append(parameter)
        return [groups[key] for key in sorted(groups)]

    def _settings(self, single: dict, name: str, inside: bool) -> dict:
        """Learning rate, weight decay and custom settings of a parameter, before layer-wise decay.

        Args:
            single: Its group as made by mmengine.
            inside: Whether it belongs to a backbone.
        """
        settings = {'lr': self.base_lr, 'weight_decay': self.base_wd, **single}
        (parameter,) = settings.pop('params')
        settings.pop('lr_mult', None)
        if settings.pop('decay_mult', None) is None:
            by_rule = any(key in self.paramwise_cfg for key in _NORM_AND_BIAS_RULES)
            never = inside and not NEVER_DECAYED.isdisjoint(name.split('.'))
            if never or (parameter.ndim <= 1 and not by_rule):
                settings['weight_decay'] = 0.0
        return settings


def describe(groups: list[dict]) -> str:
    """A table of parameter groups, one line per group."""
    lines = [
        'layer-wise decay of the learning rate',
        'lr scale        lr  weight decay  tensors   parameters  group',
    ]
    for group in groups:
        parameters = sum(p.numel() for p in group['params'])
        lines.append(
            f'{group["lr_scale"]:8.4f}  {group["lr"]:8.3g}  {group["weight_decay"]:12g}'
            f'  {len(group["params"]):7}  {parameters:11,}  {group["name"]}'
        )
    return '\n'.join(lines)
