"""SwinV2 as a multi-scale backbone, registered with OpenMMLab's toolboxes.

The import requires torch and mmengine alone. It registers :class:`SwinTransformerV2` in mmengine's
root ``MODELS``, :class:`SwinV2LayerDecayConstructor` in its ``OPTIM_WRAPPER_CONSTRUCTORS`` and
:class:`ClearCachesHook` in its ``HOOKS``.
"""

from importlib.util import find_spec

# mmengine is not an install requirement: maintained forks of it have other distribution names and
# the same import name, and pip would overwrite their files with the official ones.
if find_spec('mmengine') is None:
    raise ImportError(
        'swinv2_backbone needs mmengine, which is not installed: run `pip install mmengine` '
        "(docs/installation.md has the steps for all of OpenMMLab's stack)"
    )

from .hooks import ClearCachesHook
from .optim import SwinV2LayerDecayConstructor
from .swin_transformer_v2 import SwinTransformerV2
from .version import __version__

__all__ = ['ClearCachesHook', 'SwinTransformerV2', 'SwinV2LayerDecayConstructor', '__version__']
