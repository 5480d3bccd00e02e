"""Initialization of a network for training from scratch."""

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from .blocks import SwinTransformerBlock


def has_values(model: nn.Module) -> bool:
    """Whether all parameters have values to initialize: none is on the meta device, or fake."""
    return not any(p.is_meta or isinstance(p, FakeTensor) for p in model.parameters())


def init_from_scratch(model: nn.Module) -> None:
    """Initialize linear layers and post-norms for training from scratch, as the official code."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            # Bounds of 5 standard deviations. With the customary -2 and 2, which are 100, torch
            # before 2.13 and mmengine return -2 itself for one weight in 2**24.
            nn.init.trunc_normal_(module.weight, std=0.02, a=-0.1, b=0.1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        # Residual branches end with a norm. With weight and bias 0, each block starts as the
        # identity; otherwise large models diverge.
        if isinstance(module, SwinTransformerBlock):
            for parameter in (*module.norm1.parameters(), *module.norm2.parameters()):
                nn.init.zeros_(parameter)


def reset_from_scratch(model: nn.Module) -> None:
    """Initialize all parameters, also those that a module's constructor initializes."""
    for module in model.modules():
        reset = getattr(module, 'reset_parameters', None)
        if callable(reset):
            reset()
    init_from_scratch(model)
