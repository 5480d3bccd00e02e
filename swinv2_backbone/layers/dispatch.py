"""When the fast path is taken, and the one operator of it that stands alone."""

import os

import torch
from torch import Tensor, nn

IMPLEMENTATION_VARIABLE = 'SWINV2_ATTENTION'
# From torch 2.7 on. Older ones always run the plain definition.
FUSED_SUPPORTED = hasattr(torch.library, 'custom_op') and hasattr(torch.compiler, 'is_exporting')

# So much at a time stays in the cache of a CPU.
TOKENS_IN_CACHE = 2048


def use_fused_implementation() -> bool:
    """Whether to run the fast twin instead of the plain definition.

    ``SWINV2_ATTENTION=plain`` in the environment turns it off, for debugging. Exporters
    (torch.export, torch.onnx, torch.jit.trace) always get the plain one, which is made of
    operators that every runtime knows.

    Raises:
        ValueError: If the variable is neither 'fast' nor 'plain'.
    """
    if not FUSED_SUPPORTED or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    wanted = os.environ.get(IMPLEMENTATION_VARIABLE, 'fast')
    if wanted not in ('fast', 'plain'):
        raise ValueError(f"{IMPLEMENTATION_VARIABLE}: got {wanted!r}, allowed: 'fast' or 'plain'")
    return wanted == 'fast'


def records_gradient(*inputs: Tensor) -> bool:
    """Whether autograd will keep what is computed from these."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks at what goes through a module or its children."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def linear_gelu(x: Tensor, linear: nn.Module, act: nn.Module) -> Tensor:
    """``act(linear(x))``, in one pass where that is a Linear and a GELU on a CPU in inference.

    oneDNN adds the bias and applies the GELU as it writes a product; torch.compile's CPU backend
    emits the same operator. The two modules by themselves go through memory three times.
    """
    if torch.compiler.is_compiling() or x.device.type != 'cpu' or not use_fused_implementation():
        return act(linear(x))
    fused = getattr(torch.ops.mkldnn, '_linear_pointwise', None)
    if (
        fused is None
        or not torch.backends.mkldnn.is_available()
        or type(linear) is not nn.Linear
        or type(act) is not nn.GELU
        or act.approximate != 'none'
        or has_hooks(linear)
        or has_hooks(act)
        or not x.dtype == linear.weight.dtype == torch.float32
        or torch.is_autocast_enabled('cpu')
        or records_gradient(x, *linear.parameters())
    ):
        return act(linear(x))
    return fused(x, linear.weight, linear.bias, 'gelu', [], 'none')
