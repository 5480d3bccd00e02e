"""Where the kernels in Triton run."""

import importlib.util
import os

import torch
from torch import Tensor

_HAS_TRITON = importlib.util.find_spec('triton') is not None
# The first architecture with bfloat16 on tensor cores: Ampere.
_OLDEST_CAPABILITY = 8


def can_run_triton(x: Tensor, forced: bool = False) -> bool:
    """Whether kernels in Triton can compute with a tensor.

    They can on NVIDIA GPUs from Ampere on, and on CPUs in Triton's interpreter
    (``TRITON_INTERPRET=1`` in the environment), if Triton is installed.

    Args:
        forced: Whether the user asked for Triton. Then also CPU tensors in the interpreter, and
            tensors on the meta device as if they were on a GPU.
    """
    if not _HAS_TRITON:
        return False
    if x.device.type == 'cuda':
        if torch.version.hip is not None:
            return False
        return torch.cuda.get_device_properties(x.device).major >= _OLDEST_CAPABILITY
    if x.device.type == 'cpu':
        return forced and os.environ.get('TRITON_INTERPRET') == '1'
    return forced and x.device.type == 'meta'
