"""The GEMM limit: the matrix products of a step alone, without anything between them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
# An operand larger than this does not stay in a cache between two products.
_CACHED_BYTES = 2**25


class Operand(NamedTuple):
    """A matrix ``(M, K)``, or a batch of them ``(n, M, K)``, and its layout in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    transposed: bool = False

    @classmethod
    def like(cls, x: Tensor) -> 'Operand':
        return cls(tuple(x.shape), x.dtype, x.stride(-2) == 1 and x.shape[-1] > 1)

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def over(self, storage: Tensor) -> Tensor:
        """A view of a flat tensor, which is long enough, as this operand."""
        shape = self.shape[:-2] + self.shape[:-3:-1] if self.transposed else self.shape
        x = storage[: math.prod(shape)].view(shape)
        return x.mT if self.transposed else x


class Product(NamedTuple):
    """``a @ b``, plus one bias per column if there is one."""

    a: Operand
    b: Operand
    bias: bool = False

    @property
    def multiply_adds(self) -> int:
        return math.prod(self.a.shape) * self.b.shape[-1]

    def operands(self) -> list[tuple[str, Operand]]:
        """The operands with their roles: a, b, out and bias."""
        columns, dtype = self.b.shape[-1], self.a.dtype
        found = [
            ('a', self.a),
            ('b', self.b),
            ('out', Operand((*self.a.shape[:-1], columns), dtype)),
        ]
        return found + [('bias', Operand((1, columns), dtype))] * self.bias


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], *_: object
) -> list[Product]:
    """A convolution of patches (stride = kernel, no padding) as a product."""
    patches, taps = _patches(x, weight, stride)
    return [
        Product(
            Operand((patches, taps), x.dtype),
            Operand((taps, weight.shape[0]), x.dtype, True),
            bias is not None,
        )
    ]


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: object, stride: list[int], *rest: object
) -> list[Product]:
    """The products of its backward, for those gradients that are requested."""
    patches, taps = _patches(x, weight, stride)
    channels, (of_input, of_weight, _) = weight.shape[0], rest[-1]
    products = [
        Product(Operand((patches, channels), x.dtype), Operand((channels, taps), x.dtype)),
        Product(Operand((channels, patches), x.dtype, True), Operand((patches, taps), x.dtype)),
    ]
    return products[:1] * of_input + products[1:] * of_weight


def _patches(x: Tensor, weight: Tensor, stride: list[int]) -> tuple[int, int]:
    if tuple(stride) != tuple(weight.shape[2:]):
        raise ValueError(
            f'a convolution of kernel {tuple(weight.shape[2:])} and stride '
            f'{tuple(stride)} is no product of patches'
        )
    return x.shape[0] * math.prod(x.shape[2:]) // math.prod(stride), weight[0].numel()


def _product(a: Tensor, b: Tensor) -> list[Product]:
    return [Product(Operand.like(a), Operand.like(b))]


_PRODUCTS = {
    aten.mm.default: _product,
    aten.bmm.default: _product,
    # A bias is added by the product itself; a whole matrix to add is elementwise work.
    aten.addmm.default: lambda c, a, b, **_: [
        Product(Operand.like(a), Operand.like(b), c.ndim == 1)
    ],
    aten.baddbmm.default: lambda c, a, b, **_: _product(a, b),
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
}


class Recorder(TorchDispatchMode):
    """Records every matrix product that is done under it, in order, in ``products``."""

    def __init__(self):
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            self.products += _PRODUCTS[func](*args, **kwargs)
        return func(*args, **kwargs)


def record(step: Callable[[], object]) -> tuple[list[Product], int]:
    """The products of a step, in order, and its multiply-adds by torch's own count."""
    step()  # What is computed once and cached, as our position bias in eval mode, is not counted.
    with FlopCounterMode(display=False) as counter, Recorder() as recorder:
        step()
    return recorder.products, counter.get_total_flops() // 2


class Replay:
    """A step that does the products alone, each into an existing buffer.

    Their dtypes and layouts are those of our reference attention: under autocast, attention logits
    are in float32. Operands of the same role, shape and layout share a buffer. Those too large for
    a cache share one whatever their shape, or the buffers of a large training step would take more
    memory than the step.
    """

    def __init__(self, products: list[Product], device: str):
        used = [(role, operand) for product in products for role, operand in product.operands()]
        lengths: dict[tuple, int] = {}
        for role, operand in used:
            key = self._key(role, operand)
            lengths[key] = max(lengths.get(key, 0), math.prod(operand.shape))
        self.buffers = {
            key: torch.randn(length, device=device).to(key[1].dtype)
            for key, length in lengths.items()
        }
        views = {each: each[1].over(self.buffers[self._key(*each)]) for each in set(used)}
        self.calls = []
        for product in products:
            operands = {role: views[role, operand] for role, operand in product.operands()}
            a, b, out = operands['a'], operands['b'], operands['out']
            if product.bias:
                self.calls.append((torch.addmm, (operands['bias'][0], a, b), out))
            else:
                self.calls.append((torch.bmm if a.ndim == 3 else torch.mm, (a, b), out))

    @staticmethod
    def _key(role: str, operand: Operand) -> tuple[str, Operand]:
        if operand.bytes > _CACHED_BYTES:
            operand = Operand((), operand.dtype)
        return role, operand

    @property
    def bytes(self) -> int:
        """The size of the buffers."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    @torch.no_grad()
    def __call__(self) -> None:
        for function, operands, out in self.calls:
            function(*operands, out=out)
