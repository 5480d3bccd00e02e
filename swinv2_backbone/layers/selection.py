"""What the environment asks for, and where the kernels in Triton can run."""

import importlib.util
import os

import torch

IMPLEMENTATION_VARIABLE = 'SWINV2_ATTENTION'
# None: the fastest that can run. 'fast' and 'plain' are the names that versions up to 0.1 had.
IMPLEMENTATIONS = {
    'fused': None,
    'fast': None,
    'sdpa': 'sdpa',
    'triton': 'triton',
    'reference': 'reference',
    'plain': 'reference',
}
# Of the maps that the kernels compute with.
TRITON_DTYPES = torch.bfloat16, torch.float16
_HAS_TRITON = importlib.util.find_spec('triton') is not None
# The first architecture with bfloat16 on tensor cores: Ampere.
_OLDEST_CAPABILITY = 8, 0


def configured_implementation() -> str | None:
    """The implementation that the environment asks for; None: the fastest that can run.

    Raises:
        ValueError: If the variable names no implementation.
    """
    name = os.environ.get(IMPLEMENTATION_VARIABLE, 'fused')
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"{IMPLEMENTATION_VARIABLE}: got {name!r}, allowed: 'fused', 'triton', 'sdpa' or "
            "'reference'"
        )
    return IMPLEMENTATIONS[name]


def triton_obstacle(device: torch.device) -> str | None:
    """Why kernels in Triton cannot run on a device, or None.

    They run on NVIDIA GPUs from Ampere on, on CPUs in Triton's interpreter (``TRITON_INTERPRET=1``
    in the environment), and on the meta device, where nothing is computed.
    """
    interpreted = device.type == 'cpu' and os.environ.get('TRITON_INTERPRET') == '1'
    if device.type not in ('cuda', 'meta') and not interpreted:
        return f'the Triton kernels are for NVIDIA GPUs (or TRITON_INTERPRET=1), got {device.type}'
    if not _HAS_TRITON:
        return 'triton is not installed'
    if device.type != 'cuda':
        return None
    if torch.version.hip is not None:
        return 'the Triton kernels are for NVIDIA GPUs, this is one of AMD'
    properties = torch.cuda.get_device_properties(device)
    if (properties.major, properties.minor) < _OLDEST_CAPABILITY:
        return (
            'the Triton kernels need compute capability 8.0, this GPU has '
            f'{properties.major}.{properties.minor}'
        )
    return None
