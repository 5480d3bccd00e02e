"""Reading the output of cuobjdump."""

import pytest

from tools.gpu import machine_code
from tools.gpu.machine_code import Loop

USAGE = """
Resource usage:
 Common:
  GLOBAL:11 CONSTANT[4]:8
 Function forward:
  REG:132 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:608 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
# As cuobjdump prints it: two lines per instruction, of which the second has only the encoding.
_LINE = """        /*{:04x}*/                   {} ;       /* 0x00000a00ff017b82 */
                                                                       /* 0x000e700000000800 */
"""


def code(*instructions):
    text = '\n\tcode for sm_90a\n\t\tFunction : forward\n\t.headerflags\t@"EF_CUDA_SM90"\n'
    lines = (_LINE.format(16 * i, each) for i, each in enumerate(instructions))
    return machine_code.parse_instructions(text + ''.join(lines))


def test_usage():
    assert machine_code.parse_usage(USAGE) == (132, 16)
    with pytest.raises(ValueError, match='no resource usage'):
        machine_code.parse_usage('cuobjdump fatal: ')


def test_instructions():
    parsed = code('LDC R1, c[0x0][0x28]', '@!P0 BRA 0x40', 'BRA.U UP0, 0x10', 'EXIT')
    assert [each.address for each in parsed] == [0, 16, 32, 48]
    assert [each.name for each in parsed] == ['LDC', 'BRA', 'BRA.U', 'EXIT']
    assert [each.target for each in parsed] == [None, 0x40, 0x10, None]
    assert [each.conditional for each in parsed] == [False, True, True, False]


def test_spills_are_loads_and_stores_of_the_stack():
    parsed = code('STL [R1], R5', 'LDG.E R2, [R4.64]', 'LDL.LU R3, [R1+0x4]', 'LDS R3, [R1]')
    assert machine_code.spilled(parsed) == 2


def test_products_of_the_tensor_cores():
    parsed = code(
        'HMMA.16816.F32.BF16 R4, R8, R12, R4',
        'HGMMA.64x32x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT',
        'UTCHMMA gdesc[UR56], gdesc[UR60], tmem[UR10]',
        'UTCHMMA gdesc[UR56], gdesc[UR60], tmem[UR10]',
        'HFMA2.MMA R2, -RZ, RZ, 0, 0',
    )
    assert machine_code.tensor_core_instructions(parsed) == {'HMMA': 1, 'HGMMA': 1, 'UTCHMMA': 2}
    # A warp group of four warps shares the second.
    assert [each.flops for each in parsed] == [4096, 2 * 64 * 32 * 16 // 4, None, None, None]


def test_loop_and_what_a_branch_in_it_skips():
    """The mask of windows at an edge is such a branch."""
    parsed = code(
        'MOV R0, R1',
        'HMMA.16816.F32 R4, R8, R12, R4',  # 0x10, the head
        '@!P0 BRA 0x50',
        'FSEL R1, R2, R3, P1',
        'FSEL R2, R2, R3, P1',
        'HMMA.16816.F32 R4, R8, R12, R4',  # 0x50
        '@P2 BRA 0x10',
        'EXIT',
        'BRA 0x80',  # What ends every kernel.
        'NOP',
    )
    assert machine_code.main_loops(parsed) == [Loop(instructions=6, always=4, flops=8192)]


def test_innermost_loops_that_compute_count():
    parsed = code(
        'MOV R0, R1',  # 0x00, the head of the outer loop
        'FADD R1, R1, R2',  # 0x10, a loop without products
        '@P0 BRA 0x10',
        'HMMA.16816.F32 R4, R8, R12, R4',  # 0x30
        '@P1 BRA 0x30',
        'HMMA.16816.F32 R4, R8, R12, R4',  # 0x50
        'FADD R1, R1, R2',
        '@P1 BRA 0x50',
        'BRA.U UP0, 0x0',
        'EXIT',
    )
    assert machine_code.main_loops(parsed) == [Loop(2, 2, 4096), Loop(3, 3, 4096)]


def test_waiting_outside_of_the_loop_is_no_loop_of_its_own():
    """Blackwell's code waits in blocks behind the kernel, which jump back into the loop."""
    parsed = code(
        'UTCHMMA gdesc[UR56], gdesc[UR60], tmem[UR10]',  # 0x00, the head
        '@!P0 BRA 0x50',
        'UTCHMMA gdesc[UR56], gdesc[UR60], tmem[UR10]',  # 0x20
        '@P1 BRA 0x0',
        'EXIT',
        'SYNCS.PHASECHK P0, [UR4]',  # 0x50
        '@!P0 BRA 0x50',
        'BRA 0x20',
    )
    assert machine_code.main_loops(parsed) == [Loop(instructions=7, always=4, flops=None)]


def test_kernel_without_loop_counts_as_a_whole():
    parsed = code('LDG.E R1, [R2.64]', 'STG.E [R4.64], R1', 'EXIT', 'BRA 0x30')
    assert machine_code.main_loops(parsed) == [Loop(instructions=4, always=4, flops=0)]
