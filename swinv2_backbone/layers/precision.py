"""Precision of what half precision and autocast would spoil."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in its own dtype if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast casts to on a device; None where it is off."""
    if device.type not in ('cpu', 'cuda') or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A ``with`` block in which autocast is off on the device of `x`."""
    device = x.device.type
    # (Not asked while compiling: older versions cannot trace the question.)
    if not torch.compiler.is_compiling() and not torch.amp.is_autocast_available(device):
        return nullcontext()  # Such as the meta device.
    return torch.autocast(device, enabled=False)
