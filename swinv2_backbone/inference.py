"""Inference in bfloat16 by a model of which all but the backbone computes in float32."""

import torch
from torch import nn

from .swin_transformer_v2 import SwinTransformerV2


def compute_in_bfloat16(backbone: SwinTransformerV2) -> SwinTransformerV2:
    """Have a backbone compute under bfloat16 autocast from now on, for inference.

    Only the backbone does: necks, heads and operators that take no bfloat16 (mmcv's) get float32
    maps. The weights of its linear layers are cast in place, once, where autocast would cast them
    in each forward; the values are the same. The position bias stays as exact as in float32.

    Args:
        backbone: Such as ``model.backbone`` of mmdet's ``init_detector``, on its device.

    Returns:
        The same module.

    Raises:
        TypeError: If it is another module, such as the whole model.
    """
    if not isinstance(backbone, SwinTransformerV2):
        raise TypeError(
            f'backbone: got {type(backbone).__name__}, allowed: a SwinTransformerV2, such as '
            'model.backbone'
        )
    for name, layer in backbone.named_modules():
        if isinstance(layer, nn.Linear) and 'cpb_mlp' not in name:
            layer.to(torch.bfloat16)
    device = next(backbone.parameters()).device.type
    forward = torch.autocast(device, torch.bfloat16)(backbone.forward)
    backbone.forward = lambda x: tuple(  # type: ignore[method-assign]  # of this instance alone
        each.float() for each in forward(x)
    )
    return backbone
