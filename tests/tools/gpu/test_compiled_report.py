"""The table of compiled kernels, and what fails the command."""

import pytest

from tools.gpu import compiled_report
from tools.gpu.compiled_report import count_products, failures, roofline_rows, rows
from tools.gpu.roofline import WARP

FP16 = ['*fp16', '*fp32', '*fp16']


def entry(**changes):
    """A forward of windows of 8 x 8: two products of 64 x 64 x 32, by four warps."""
    loop = dict(instructions=800, always=640, flops=2 * 2 * 64 * 64 * 32 // 4)
    fields = dict(
        triton='3.7.1',
        kernel='triton_forward.forward',
        types=['*bf16', '*fp32', '*bf16'],
        constants=dict(D=32, QUERIES=64, KEYS=64),
        options=dict(num_warps=4, num_stages=2),
        uses=['window 7, d 32, bf16', 'window 8, d 32, bf16'],
        capability=90,
        registers=132,
        stack=0,
        spills=0,
        shared=1024,
        tensor_cores={'HGMMA': 6},
        loops=[loop],
    )
    return fields | changes


def test_products_are_counted_and_taken_from_sm_90_where_they_are_not_known():
    unknown = entry(capability=100, loops=[dict(instructions=9, always=9, flops=None)])
    entries = [unknown, entry()]
    count_products(entries)
    assert [each['products'] for each in entries] == [2, 2]


def test_rows():
    entries = [
        entry(),
        entry(triton='3.6.0', registers=140),
        entry(types=FP16),
        entry(capability=80, spills=8),
        entry(kernel='triton_norm.add_rows', constants=dict(ROWS=64), tensor_cores={}),
    ]
    count_products(entries)
    head, *table = rows(entries, 90)
    assert head == compiled_report._HEAD
    first = dict(zip(head, table[0], strict=True))
    assert first == {
        'kernel': 'triton_forward.forward',
        'for': 'window 7 8, d 32, bf16',
        'constants': 'D=32 QUERIES=64 KEYS=64',
        'warps': '4',
        'stages': '2',
        'registers': '132 / 140',
        'spills': '0',
        'shared bytes': '1024',
        'tensor cores': '6 HGMMA',
        'products': '2',
        'instructions per logit': f'{640 * 4 * WARP / 4096:.1f} ({800 * 4 * WARP / 4096:.1f})',
    }
    # fp16 is listed, because with one version alone it differs from bf16.
    assert [row[0] for row in table] == [
        'triton_forward.forward', 'triton_forward.forward', 'triton_norm.add_rows',
    ]  # fmt: skip
    assert table[2][-2:] == ('-', '-')


def test_fp16_is_not_listed_where_it_is_the_same():
    entries = [entry(), entry(types=FP16)]
    count_products(entries)
    assert len(rows(entries, 90)) == 2


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(spills=2), '2 loads and stores of spilled registers'),
        (dict(error='CompilationError: at 12:3'), 'CompilationError: at 12:3'),
    ],
)
def test_failures(changes, message):
    (line,) = failures([entry(), entry(**changes)])
    assert line.endswith(message)
    assert 'triton_forward.forward' in line
    assert 'sm_90, triton 3.7.1' in line


def test_spills_elsewhere_are_listed_only():
    assert failures([entry(capability=80, spills=8)]) == []


def test_kernel_that_does_not_compile_has_a_row():
    broken = entry(error='CompilationError: no')
    count_products([broken])
    assert rows([broken], 90)[1][5:] == ('CompilationError: no', '-', '-', '-', '-', '-')


def test_roofline_needs_every_kernel():
    entries = [entry(loops=[dict(entry()['loops'][0], always=6400)])]
    count_products(entries)
    table = {row[:3]: row[3:] for row in roofline_rows(entries)}
    ideal, ours, limit = table['512, window 8, batch 8', 'H100 SXM', 'forward']
    assert ideal == '0.16'  # The memory's: 8 bytes per token and channel, in 12 blocks.
    assert float(ours) > float(ideal)
    assert limit == 'instructions'
    assert table['512, window 8, batch 8', 'H100 SXM', 'backward'][1:] == ('-', '-')
    assert table['512, window 16, batch 8', 'H100 SXM', 'forward'][1:] == ('-', '-')


def test_document_says_how_its_numbers_are_made():
    text = compiled_report.document([entry()], ['3.6.0', '3.7.1'], '2.13.0')
    assert 'make gpu-compile' in text
    assert 'triton 3.6.0 / triton 3.7.1' in text
    assert 'Nothing here was timed' in text
    assert '| triton_forward.forward |' in text
