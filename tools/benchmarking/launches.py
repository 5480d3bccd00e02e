"""Launches of kernels on an NVIDIA GPU, counted without one.

A step runs on the meta device, where tensors have shapes and no values. Every operator of torch
that it calls is one kernel, but for those that compute nothing (views, allocations) and those of
which CUDA's implementation is known to be more. Operators of this package count as what they
launch: the operators of torch that they call, and their kernels in Triton.

It is a count of eager mode from below: cuBLAS and cuDNN launch further kernels for some shapes
(split sums, changes of the layout), which only a profile on a GPU can tell.
"""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers import fused_attention, weight_casts
from tools.benchmarking.cases import DTYPES, Case

_OURS = SwinTransformerV2.__module__.partition('.')[0]
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
# Operators whose results the host reads, for which it waits for the device.
_READ = {'_local_scalar_dense', 'equal', 'nonzero', 'masked_select', '_unique2', 'is_nonzero'}


class LaunchCounter(TorchDispatchMode):
    """Counts launches, and what the host waits for.

    Attributes:
        counts: Launches by the name of the operator or kernel.
        waits: What blocks the host, by name: copies from or to it, and operators whose results it
            reads.
    """

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self._around: list[ExitStack] = []

    def __enter__(self):
        stack = ExitStack()
        if not self._around:  # Else it is inside of itself.
            stack.enter_context(_kernels_of_triton_counted(self.counts))
            stack.enter_context(_Functions(self))
        self._around.append(stack)
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self._around.pop().close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == _OURS:
            with torch.no_grad(), self:
                OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        else:
            name = func._schema.name.partition('::')[2]
            if not (func.is_view or name in _FREE):
                several = _launches_for_lists(args[0]) if name.startswith('_foreach_') else 1
                self.counts[name] += _KERNELS.get(name, several)
            if name in _READ or _is_between_devices(name, args, kwargs):
                self.waits[name] += 1
        return func(*args, **kwargs)


def _launches_for_lists(tensors: list[Tensor]) -> int:
    """Launches of an operator of two lists: each takes 64 tensors, or 320 chunks of 64K elements.

    Source:
        aten/src/ATen/native/cuda/MultiTensorApply.cuh
    """
    chunks = sum(-(-tensor.numel() // 2**16) for tensor in tensors)
    return max(-(-len(tensors) // 64), -(-chunks // 320))


def _is_between_devices(name: str, args: tuple, kwargs: dict) -> bool:
    # (Other operators take tensors of several devices only if those are single numbers, which the
    # host hands over with the launch.)
    if name not in ('_to_copy', 'copy_'):
        return False
    devices = {x.device for x in tree_leaves(args) if isinstance(x, Tensor)}
    target = kwargs.get('device')
    return len(devices | ({torch.device(target)} if target else set())) > 1


@contextmanager
def _kernels_of_triton_counted(counts: Counter[str]) -> Iterator[None]:
    """Count kernels in Triton by name instead of launching them."""
    if importlib.util.find_spec('triton') is None:
        yield
        return
    from triton.runtime.jit import JITFunction

    def launch(kernel, *args, **kwargs):
        counts[kernel.fn.__name__] += 1

    with mock.patch.object(JITFunction, 'run', launch):
        yield


class _Functions(TorchFunctionMode):
    """What the operators below do not show on the meta device."""

    def __init__(self, counter: LaunchCounter):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            # A single kernel of a GPU. Without one, torch would choose the one of many operators.
            self.counter.counts['scaled_dot_product_attention'] += 1
            return torch.empty_like(args[0])
        if func in (torch.tensor, torch.as_tensor):
            self.counter.waits[func.__name__] += 1
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


@contextmanager
def _autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """A context with autocast to a dtype, or without (None)."""
    if dtype is None:
        yield
        return
    with ExitStack() as stack:
        for module in (fused_attention, weight_casts):
            patch = mock.patch.object(module, 'autocast_dtype', return_value=dtype)
            stack.enter_context(patch)
        stack.enter_context(_Autocast(dtype))
        yield


def count_launches(case: Case, arch: dict, amp: bool) -> LaunchCounter:
    """Launches of a forward in eval mode ('infer'), or of a forward and backward ('train').

    What is cached is there already. In training, the gradients of the maps are given,
    and weights have no gradients yet to which to add.

    Args:
        case: What is counted; its dtype is 'bf16' or 'fp16'.
        arch: As of the backbone.
        amp: Whether weights and images are in float32, under autocast to the dtype of the case.
            Else they are in that dtype.

    """
    training, dtype = case.mode == 'train', DTYPES[case.dtype]
    with torch.device('meta'):
        model = SwinTransformerV2(arch, window_size=case.window).train(training)
        image = torch.empty(case.batch, 3, case.height, case.width)
    if not amp:
        model, image = model.to(dtype), image.to(dtype)
    with LaunchCounter() as counter, torch.set_grad_enabled(training):
        for _ in range(2):  # The first fills the caches.
            counter.counts.clear()
            counter.waits.clear()
            with _autocast(dtype if amp else None):
                maps = model(image)
    if training:
        grads = [torch.empty_like(each) for each in maps]
        with counter:
            torch.autograd.backward(maps, grads)
    return counter
