"""SwinV2 as a multi-scale backbone, registered with OpenMMLab's toolboxes.

The import requires torch and mmengine alone. It registers :class:`SwinTransformerV2` in mmengine's
root ``MODELS``, :class:`SwinV2LayerDecayConstructor` in its ``OPTIM_WRAPPER_CONSTRUCTORS`` and
:class:`ClearCachesHook` in its ``HOOKS`` (this one only where mmengine's hooks can be imported).
"""

from importlib.util import find_spec

# mmengine is not an install requirement: maintained forks of it have other distribution names and
# the same import name, and pip would overwrite their files with the official ones.
if find_spec('mmengine') is None:
    raise ImportError(
        'swinv2_backbone needs mmengine, which is not installed: run `pip install mmengine` '
        "(docs/installation.md has the steps for all of OpenMMLab's stack)"
    )

from .inference import compute_in_bfloat16
from .optim import SwinV2LayerDecayConstructor
from .swin_transformer_v2 import SwinTransformerV2
from .version import __version__

__all__ = ['SwinTransformerV2', 'SwinV2LayerDecayConstructor', '__version__', 'compute_in_bfloat16']

# mmengine's hooks import opencv, which the backbone does without; on a server it may lack libGL.
try:
    from .hooks import ClearCachesHook as ClearCachesHook
except ImportError:
    pass
else:
    __all__ += ['ClearCachesHook']
