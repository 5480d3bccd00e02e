"""Layer-wise decay of the learning rate, for fine-tuning."""

import re
from numbers import Real

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from .swin_transformer_v2 import SwinTransformerV2

# Of the backbone, besides norms and biases. (mmengine's rules by kind miss them: q_bias and v_bias
# are not called `bias`, logit_scale is three-dimensional.)
NEVER_DECAYED = frozenset({'logit_scale', 'cpb_mlp', 'q_bias', 'v_bias'})
RATE = 'layer_decay_rate'
_BY_KIND = ('norm_decay_mult', 'bias_decay_mult', 'flat_decay_mult')
# What mmengine's constructor reads from paramwise_cfg.
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


def layer_of(name: str, depths: list[int]) -> int:
    """The layer that a parameter of a backbone belongs to.

    Args:
        name: Its name in the backbone.
        depths: Blocks of each stage.

    Returns:
        0 for the patch embed, 1 to n for the n blocks in their order (a patch merging goes with
        the block before it), n + 1 for the output norms.

    Raises:
        ValueError: If it is of none of these.
    """
    block = re.match(r'layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.', name)
    if name.startswith('patch_embed.'):
        return 0
    if re.match(r'norm[0-3]\.', name):
        return sum(depths) + 1
    if block is None:
        raise ValueError(
            f'{name}: is of no layer of a SwinTransformerV2 (patch embed, blocks, '
            'patch mergings, output norms), so it has no place in layer-wise decay'
        )
    stage = int(block[1])
    within = depths[stage] if block[2] is None else int(block[2]) + 1
    return sum(depths[:stage]) + within


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SwinV2LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Learning rates that fall from the last layer of the backbone to the first.

    A block takes ``layer_decay_rate`` times the rate of the next one, the patch embed that of the
    first block; the output norms and all outside of the backbone take the optimizer's own rate.
    Norms and biases (all that is one-dimensional) do not decay, nor do the backbone's
    ``logit_scale``, ``cpb_mlp``, ``q_bias`` and ``v_bias``. mmengine's options come on top: a
    ``lr_mult`` of ``custom_keys`` multiplies, a ``decay_mult`` has the last word, and where
    ``norm_decay_mult``, ``bias_decay_mult`` or ``flat_decay_mult`` is given, mmengine's rules
    decide what of norms and biases decays.

    ::

        optim_wrapper = dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=4e-5, weight_decay=0.05),
            constructor='swinv2_backbone.SwinV2LayerDecayConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.95))

    Args:
        optim_wrapper_cfg: As mmengine's; its optimizer has ``lr`` and ``weight_decay``.
        paramwise_cfg: ``layer_decay_rate``, above 0 and at most 1, and mmengine's options.

    Raises:
        TypeError, ValueError: If an option is missing, unknown or out of range; when called, if
            the model has no SwinTransformerV2, or one with a parameter of no known layer.

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
        if not isinstance(rate, Real) or isinstance(rate, bool) or not 0 < rate <= 1:
            raise ValueError(
                f"paramwise_cfg['{RATE}']: got {rate!r}, allowed: a number above 0 and at most 1"
            )
        for key, value in (('lr', self.base_lr), ('weight_decay', self.base_wd)):
            if value is None:
                raise ValueError(
                    f'optimizer: got no {key}; it must be given, since it differs '
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
        """Add a group for each layer and decay of a model to `params`; see mmengine."""
        super().add_params(params, module, prefix, is_dcn_module)
        if not prefix:  # mmengine's calls this for every child, too.
            params[:] = self._by_layer(params, module)
            print_log(describe(params), logger='current')

    def _by_layer(self, params: list[dict], model: nn.Module) -> list[dict]:
        """One group for all parameters with the same layer and settings."""
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
        by_kind = any(key in self.paramwise_cfg for key in _BY_KIND)
        groups: dict = {}
        seen = set()
        for single in params:
            settings = {key: value for key, value in single.items() if key != 'params'}
            (parameter,) = single['params']
            name = names[parameter]
            if parameter in seen:
                raise ValueError(
                    f'{name}: is shared by several modules; bypass_duplicate=True in '
                    'paramwise_cfg takes it once'
                )
            seen.add(parameter)
            path, layer, last = _place(name, backbones)
            decays = settings.pop('decay_mult', None)
            settings.pop('lr_mult', None)
            never = layer is not None and not NEVER_DECAYED.isdisjoint(name.split('.'))
            if decays is None and (never or (parameter.ndim <= 1 and not by_kind)):
                settings['weight_decay'] = 0.0
            settings.setdefault('weight_decay', self.base_wd)
            scale = 1.0 if layer is None else self.paramwise_cfg[RATE] ** (last - layer)
            settings['lr'] = settings.get('lr', self.base_lr) * scale
            label = 'others' if layer is None else f'{path} layer {layer}'.strip()
            # In the order of the layers, what is outside of the backbone last.
            key = (layer is None, path, layer or 0, repr(sorted(settings.items())))
            group = groups.setdefault(
                key, {**settings, 'params': [], 'name': label, 'lr_scale': scale}
            )
            group['params'].append(parameter)
        return [groups[key] for key in sorted(groups)]


def _place(name: str, backbones: dict[str, SwinTransformerV2]) -> tuple:
    """Path of the backbone, layer in it, and its last layer; ('', None, None) outside of all."""
    for path, backbone in backbones.items():
        start = f'{path}.' if path else ''
        if name.startswith(start):
            depths = [len(stage.blocks) for stage in backbone.layers]
            return path, layer_of(name[len(start) :], depths), sum(depths) + 1
    return '', None, None


def describe(groups: list[dict]) -> str:
    """A table of parameter groups: name, scale and value of the rate, decay, parameters."""
    rows = [('group', 'lr scale', 'lr', 'weight decay', 'tensors', 'parameters')]
    for group in groups:
        rows.append(
            (
                group['name'],
                f'{group["lr_scale"]:.4f}',
                f'{group["lr"]:.3g}',
                f'{group["weight_decay"]:g}',
                str(len(group['params'])),
                f'{sum(p.numel() for p in group["params"]):,}',
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        ['layer-wise decay of the learning rate']
        + [
            '  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
    )
