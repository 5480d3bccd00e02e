"""What the package launches on a GPU, recorded without one, so that just this can be compiled.

The functions that launch kernels are called with tensors of a CPU, and Triton's launcher is
replaced. A kernel or a configuration that the package gets is recorded without a change here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

import torch
import triton
from torch import Tensor

_DTYPES = {
    torch.bfloat16: 'bf16',
    torch.float16: 'fp16',
    torch.float32: 'fp32',
    torch.int32: 'i32',
    torch.int64: 'i64',
}
# Options of a launch, with Triton's defaults.
_OPTIONS = {'num_warps': 4, 'num_stages': 3}
_ALIGNMENT = 16


@dataclass(frozen=True)
class Launch:
    """A kernel, and all that its machine code depends on.

    Attributes:
        kernel: The function under `triton.jit`.
        signature: The type of each argument, 'constexpr' for constants.
        constants: The values of those.
        divisible: Arguments that are multiples of 16, as pointers are.
        options: num_warps and num_stages.
        grid: The number of programs along each axis; not part of what is compared.
    """

    kernel: triton.JITFunction
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    divisible: tuple[str, ...]
    options: tuple[tuple[str, int], ...]
    grid: tuple[int, ...] = field(compare=False)

    @property
    def name(self) -> str:
        """The kernel's module and name."""
        return f'{self.kernel.__module__.rpartition(".")[2]}.{self.kernel.__name__}'

    def constant(self, name: str) -> object:
        """The value of a constant, or None."""
        return dict(self.constants).get(name)


def describe(kernel: triton.JITFunction, grid: object, args: tuple, kwargs: dict) -> Launch:
    """The launch ``kernel[grid](*args, **kwargs)``, specialized as Triton would do it."""
    values = dict(zip(kernel.arg_names, args, strict=False))
    values |= {name: value for name, value in kwargs.items() if name in kernel.arg_names}
    signature, constants, divisible = {}, {}, []
    for parameter in kernel.params:
        name, value = parameter.name, values[parameter.name]
        specialized = not parameter.do_not_specialize
        is_one = type(value) is int and value == 1
        if parameter.is_constexpr or value is None or (specialized and is_one):
            signature[name], constants[name] = 'constexpr', value
            continue
        signature[name] = _type_of(value)
        aligned = isinstance(value, Tensor) or (
            specialized and isinstance(value, int) and value % _ALIGNMENT == 0
        )
        if aligned:
            divisible.append(name)
    options = {name: kwargs.get(name, default) for name, default in _OPTIONS.items()}
    sizes = grid(values) if callable(grid) else grid
    return Launch(
        kernel,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple(divisible),
        tuple(options.items()),
        tuple(sizes),
    )


def _type_of(value: object) -> str:
    if isinstance(value, Tensor):
        return '*' + _DTYPES[value.dtype]
    if isinstance(value, bool):
        return 'u1'
    if isinstance(value, int):
        return 'i32' if -(2**31) <= value < 2**31 else 'i64'
    if isinstance(value, float):
        return 'fp32'
    raise TypeError(f'an argument of a kernel is a {type(value).__name__}')


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """A block in which kernels are not launched, but added to the list."""
    launches: list[Launch] = []

    def run(kernel, *args, grid, warmup, **kwargs):
        launches.append(describe(kernel, grid, args, kwargs))

    with mock.patch.object(triton.JITFunction, 'run', run):
        yield launches
