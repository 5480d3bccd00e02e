"""SwinV2 as a multi-scale backbone, registered with OpenMMLab's toolboxes.

Importing this package needs torch and mmengine alone, and registers
:class:`SwinTransformerV2` in mmengine's root ``MODELS`` and :class:`SwinV2LayerDecayConstructor`
in its ``OPTIM_WRAPPER_CONSTRUCTORS``.
"""

from importlib.util import find_spec

# mmengine is no install requirement: maintained forks install the same import name from
# another distribution, and pip would lay the official files over them.
if find_spec('mmengine') is None:
    raise ImportError(
        'swinv2_backbone needs mmengine, which is not installed: run `pip install mmengine` '
        "(or `pip install 'swinv2_backbone[openmmlab]'` for all of OpenMMLab's stack)"
    )

from .optim import SwinV2LayerDecayConstructor
from .swin_transformer_v2 import SwinTransformerV2
from .version import __version__

__all__ = ['SwinTransformerV2', 'SwinV2LayerDecayConstructor', '__version__']
