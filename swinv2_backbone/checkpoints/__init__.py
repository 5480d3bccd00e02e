"""Checkpoints of every library that has SwinV2: read, checked, loaded, converted.

This package handles names and tensors; it does not import the model.
"""

from .architecture import arch_of, describe_arch, settings_of
from .convert import Conversion, convert
from .errors import CheckpointError
from .formats import FORMATS
from .loading import PretrainedSwinV2, load_into, open_checkpoint
from .releases import RELEASES
from .state_dicts import Converted, from_backbone, to_backbone

__all__ = [
    'FORMATS',
    'RELEASES',
    'CheckpointError',
    'Conversion',
    'Converted',
    'PretrainedSwinV2',
    'arch_of',
    'convert',
    'describe_arch',
    'from_backbone',
    'load_into',
    'open_checkpoint',
    'settings_of',
    'to_backbone',
]
