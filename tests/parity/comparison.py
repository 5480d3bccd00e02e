"""Comparing ours with another implementation without a tolerance that suits one CPU alone.

What is computed is compared in float64, where rounding is some 1e-12 of the values and a
difference in meaning 1e-3 (see test_wrong_elsewhere.py). What float32 loses is compared with what
the other implementation loses on the same machine.
"""

import copy

import torch

# What the tests measured, a line each, for the summary.
measured = []


def in_float64(model):
    """A copy of a model in float64, with its relative coordinates computed in float64."""
    model = copy.deepcopy(model).double()
    for name, table in model.named_buffers():
        if name.endswith('relative_coords_table'):
            table.copy_(relative_coords_table(table))
    return model


def relative_coords_table(table):
    """A table ``(1, 2 Wh - 1, 2 Ww - 1, 2)`` of float32 precision, computed anew in float64.

    Offsets are integers, so the table's largest coordinate gives the unit of each axis, the
    pretrained window minus 1.
    """
    height, width = (side // 2 for side in table.shape[1:3])  # the largest offsets
    largest = table[0, -1, -1].double()
    axes = []
    for offset, coordinate in zip((height, width), largest.tolist(), strict=True):
        unit = round(8 * offset / (8**coordinate - 1)) if offset else 1
        axes.append(8 * torch.arange(-offset, offset + 1).double() / unit)
    t = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)[None]
    exact = t.sign() * torch.log2(1 + t.abs()) / 3
    torch.testing.assert_close(table.double(), exact, rtol=1e-5, atol=0)  # float32 has 6e-8
    return exact


def largest_difference(got, wanted):
    """The largest absolute difference between two lists of tensors."""
    return max((a - b).abs().max().item() for a, b in zip(got, wanted, strict=True))


def largest_value(tensors):
    return max(x.abs().max().item() for x in tensors)


def assert_equal_in_float64(got, wanted, what):
    """Ours and theirs in float64 differ by no more than 1e-9 of the largest value."""
    assert {x.dtype for x in (*got, *wanted)} == {torch.float64}
    difference, scale = largest_difference(got, wanted), largest_value(wanted)
    measured.append(f'{what}: largest value {scale:.1f}, difference in float64 {difference:.1e}')
    assert difference <= 1e-9 * scale


def assert_rounds_no_worse(ours32, theirs32, exact, what):
    """In float32, ours is at most 4 times as far from their float64 values as theirs is."""
    got = largest_difference(ours32, exact)
    theirs = largest_difference(theirs32, exact)
    measured.append(f'{what}: error of float32 {got:.1e}, theirs {theirs:.1e}')
    assert got <= 4 * max(theirs, torch.finfo(torch.float32).eps * largest_value(exact))
