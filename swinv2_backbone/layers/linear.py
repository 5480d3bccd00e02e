"""Linear layers: by weights that were cast already, and in float32 inference on a CPU by oneDNN.

oneDNN adds the bias and applies the GELU as it writes a product, where torch's own operators go
through memory once more for each; on an AMD CPU its products are also faster than those of MKL,
which torch's own operators use (docs/speed.md). torch.compile emits the same operator.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .caches import caches_allowed
from .precision import autocast_dtype
from .sdpa_attention import TOKENS_IN_CACHE
from .selection import configured_implementation
from .weight_casts import cast_weights_of

# oneDNN compiles and keeps a kernel for each number of rows, of up to half a megabyte. For images
# of many sizes to need few, it gets multiples, up to as many tokens as stay in the cache.
ROWS = 256
# (The operator is private, as all fused ones of torch are. A build without oneDNN lacks it.)
_HAS_ONEDNN = hasattr(torch.ops.mkldnn, '_linear_pointwise')


def linear(
    layer: nn.Linear, x: Tensor, bias: Tensor | None = None, act: nn.Module | None = None
) -> Tensor:
    """``act(layer(x))``.

    Args:
        layer: Or what somebody has put into its place.
        x: ``(..., in_features)``.
        bias: ``(out_features,)``, instead of the layer's own.
        act: Applied to the result, such as a GELU.

    Returns:
        ``(..., out_features)``.
    """
    if _use_onednn(layer, x, act):
        added = layer.bias if bias is None else bias
        fused = 'none' if act is None else 'gelu'
        return torch.ops.mkldnn._linear_pointwise(x, layer.weight, added, fused, [], 'none')
    # (The compiler fuses casts by itself.)
    cast = None if torch.compiler.is_compiling() else cast_weights_of(layer)
    if cast:
        out = F.linear(x, *cast)
    else:
        out = layer(x) if bias is None else F.linear(x, layer.weight, bias)
    return out if act is None else act(out)


def _use_onednn(layer: nn.Module, x: Tensor, act: nn.Module | None) -> bool:
    """Whether one operator may do what the modules do, which they then do not notice.

    Not in bfloat16, where torch's own operators are oneDNN's already, and bit for bit those of
    autocast. The reference attention is for debugging: with it, torch's own operators run, and also
    where a mode looks at all operators, such as torch's counter of FLOPs, which knows those alone.
    """
    modules = [layer] if act is None else [layer, act]
    return (
        x.device.type == 'cpu'
        and not torch.is_grad_enabled()
        and caches_allowed()
        and _HAS_ONEDNN
        and not is_in_torch_dispatch_mode()
        and bool(torch.backends.mkldnn.enabled)
        and configured_implementation() != 'reference'
        and type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and (act is None or (type(act) is nn.GELU and act.approximate == 'none'))
        and not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
        and autocast_dtype(x.device) is None
        and x.dtype == layer.weight.dtype == torch.float32
        and 0 < (rows := x.numel() // layer.in_features) <= TOKENS_IN_CACHE
        and rows % ROWS == 0
    )
