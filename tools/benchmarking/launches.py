"""Launches of kernels on an NVIDIA GPU, counted without one.

A step runs on the meta device, where tensors have shapes and no values. Every operator of torch that it
calls is one kernel, but for those that compute nothing (views, allocations) and those of which
CUDA's implementation is known to be more. Operators of this package count as what they launch: the
operators of torch that they call, and their kernels in Triton.

It is a count of eager mode from below: cuBLAS and cuDNN launch further kernels for some shapes
(split sums, changes of the layout), which only a profile on a GPU can tell.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from swinv2_backbone import SwinTransformerV2
from tools.benchmarking.cases import DTYPES, Case

# Operators that launch nothing: they allocate, or return a view without being declared to.
_FREE = {
    'empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided', '_unsafe_view',
    'lift_fresh', 'resize_', 'is_same_size', 'promote_types',
}  # fmt: skip
# Operators of which CUDA's implementation launches more than one kernel.
_KERNELS = {
    'convolution': 2,  # cuDNN's, and the bias.
    'convolution_backward': 2,  # Weight and bias; the image has no gradient.
    'native_layer_norm_backward': 4,  # Input; weight and bias in parts; the sum of each.
    'baddbmm': 2,  # What is added is copied first.
    'masked_fill': 2,
    'index_add': 2,
}


class LaunchCounter(TorchDispatchMode):
    """Counts launches by the name of the operator or kernel, in ``counts``."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == SwinTransformerV2.__module__.partition('.')[0]:
            self._count_ours(func, args, kwargs)
        else:
            name = func._schema.name.partition('::')[2]
            if not (func.is_view or name in _FREE):
                self.counts[name] += _KERNELS.get(name, 1)
        return func(*args, **kwargs)

    def _count_ours(self, func, args, kwargs) -> None:
        """Run the implementation of one of our operators, with nothing but its launches."""
        implementation = OPDEFS[func._schema.name]._init_fn
        with torch.no_grad(), _kernels_replaced(self.counts), self:
            implementation(*args, **kwargs)


@contextmanager
def _kernels_replaced(counts: Counter[str]) -> Iterator[None]:
    """Count kernels in Triton by name, and SDPA's as one, instead of running them."""
    with ExitStack() as stack:
        try:
            from triton.runtime.jit import JITFunction
        except ImportError:
            pass  # Then none of our operators uses it.
        else:

            def launch(kernel, *args, **kwargs):
                counts[kernel.fn.__name__] += 1

            stack.enter_context(mock.patch.object(JITFunction, 'run', launch))
        stack.enter_context(_AttentionAsOneKernel(counts))
        yield


class _AttentionAsOneKernel(TorchFunctionMode):
    """(Without a GPU, torch would choose the one of many operators.)"""

    def __init__(self, counts: Counter[str]):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.counts['scaled_dot_product_attention'] += 1
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


class _Autocast(TorchFunctionMode):
    """What torch.autocast does on CUDA to the functions that the backbone calls.

    (Tensors on the meta device have no autocast.) Weights are cast once, others at each call.
    """

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtypes = {F.linear: dtype, F.conv2d: dtype, F.layer_norm: torch.float32}
        self.weights: dict[tuple[int, torch.dtype], Tensor] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.dtypes:
            cast = functools.partial(self._cast, dtype=self.dtypes[func])
            args, kwargs = tree_map_only(Tensor, cast, (args, kwargs))
        return func(*args, **kwargs)

    def _cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.dtype == dtype:
            return x
        if not (x.is_leaf and x.requires_grad):
            return x.to(dtype)
        key = id(x), dtype
        if key not in self.weights:
            self.weights[key] = x.to(dtype)
        return self.weights[key]


def count_launches(case: Case, arch: dict, amp: bool) -> Counter[str]:
    """Launches of a forward in eval mode ('infer'), or of a forward and backward ('train').

    What is cached in eval mode is there already. In training, the gradients of the maps are given,
    and weights have no gradients yet to which to add.

    Args:
        case: What is counted; its dtype is 'bf16' or 'fp16'.
        arch: As of the backbone.
        amp: Whether weights and images are in float32, under autocast to the dtype of the case.
            Else they are in that dtype.

    Returns:
        The number of launches by the name of the operator or kernel.
    """
    training, dtype = case.mode == 'train', DTYPES[case.dtype]
    with torch.device('meta'):
        model = SwinTransformerV2(arch, window_size=case.window).train(training)
        image = torch.empty(case.batch, 3, case.height, case.width)
    if not amp:
        model, image = model.to(dtype), image.to(dtype)
    autocast: Callable = functools.partial(_Autocast, dtype) if amp else nullcontext
    with LaunchCounter() as counter, torch.set_grad_enabled(training):
        for _ in range(1 if training else 2):
            counter.counts.clear()
            with autocast():
                maps = model(image)
    if training:
        grads = [torch.empty_like(each) for each in maps]
        with counter:
            torch.autograd.backward(maps, grads)
    return counter.counts
