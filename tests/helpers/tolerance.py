"""Bounds for numeric comparisons that hold on every CPU and for every number of threads.

Which kernels run, and in which order they add, depends on the instruction set and on the threads,
so results differ by rounding from machine to machine. u is the unit roundoff of a dtype, half of
``torch.finfo(dtype).eps``: 1.1e-16 for float64, 6.0e-8 for float32.
"""

import math

import torch


def assert_equal_to_rounding(got, expected):
    """Both compute the same thing. To be used in float64.

    Each tensor may differ by 2**20 u times its largest magnitude (1.2e-10 in float64). Derivation:
    the sum of n terms is off by at most n u times the sum of their magnitudes, and the dot products
    here have at most 2**11 terms; 2**9 is for the way through the blocks, where a softmax
    multiplies the error of a logit by at most twice the scale of up to 100. Anything but rounding
    (a wrong mask, shift, bias or unit) changes these results by more than 1e-4.

    Args:
        got: A tensor, or a sequence or dict of tensors.
        expected: The same.
    """
    for name, ours, theirs in _pairs(got, expected):
        assert ours.dtype == theirs.dtype == torch.float64, f'{name}: {ours.dtype}, {theirs.dtype}'
        bound = 2**20 * torch.finfo(torch.float64).eps / 2 * theirs.abs().max().item()
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=bound, msg=lambda text, name=name: f'{name}: {text}'
        )


def assert_as_accurate(got, reference, exact, factor=4.0):
    """The error of `got` is at most `factor` times that of `reference`, plus 8 u. For any dtype.

    The error is that of all tensors together, ``|got - exact| / |exact|`` in the Euclidean norm.
    (Not tensor by tensor: in a gradient of few elements whose terms cancel, it is a matter of
    chance.) Derivation of the factor: the error of n roundings grows as sqrt(n), so that 4 allows
    for 16 times as many of them. 8 u is for a reference that is exact by chance.

    Args:
        got: A tensor, or a sequence or dict of tensors.
        reference: The same, in the same dtype, by the reference computation.
        exact: The same in float64, by the reference computation.
    """
    ours, theirs = relative_error(got, exact), relative_error(reference, exact)
    dtype = next(tensor.dtype for _, tensor, _ in _pairs(reference, exact))
    bound = factor * theirs + 4 * torch.finfo(dtype).eps
    assert ours <= bound, f'relative error {ours:.3g}, of the reference {theirs:.3g}'


def relative_error(got, exact):
    """``|got - exact| / |exact|`` of all tensors together, in the Euclidean norm."""
    pairs = [(ours.double(), theirs.double()) for _, ours, theirs in _pairs(got, exact)]
    error = math.hypot(*((ours - theirs).norm().item() for ours, theirs in pairs))
    return error / math.hypot(*(theirs.norm().item() for _, theirs in pairs))


def _pairs(got, expected):
    """(name, tensor, tensor) of two tensors, sequences or dicts."""
    if isinstance(expected, torch.Tensor):
        got, expected = [got], [expected]
    if not isinstance(expected, dict):
        got, expected = dict(enumerate(got)), dict(enumerate(expected))
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].shape == tensor.shape, f'{name}: {got[name].shape}, {tensor.shape}'
        yield name, got[name].detach(), tensor.detach()
