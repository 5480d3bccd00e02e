"""The process that compiles all kernels with one version of Triton, which is first on its path.

Prints a line of JSON per kernel and architecture. Needs neither a GPU nor a driver: Triton's wheel
has the assembler and the disassembler.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tools.gpu import machine_code
from tools.gpu.launches import Launch
from tools.gpu.product import launches_by_use

_TOOLS = Path(triton.__file__).parent / 'backends/nvidia/bin'


def compile_launch(launch: Launch, capability: int) -> triton.compiler.CompiledKernel:
    """Machine code of a kernel for an architecture, e.g. 90 for sm_90."""
    names = launch.kernel.arg_names
    aligned = {(names.index(name),): [['tt.divisibility', 16]] for name in launch.divisible}
    source = ASTSource(
        launch.kernel, dict(launch.signature), constexprs=dict(launch.constants), attrs=aligned
    )
    target = GPUTarget('cuda', capability, 32)
    return triton.compile(source, target=target, options=dict(launch.options))


def analyze(cubin: bytes) -> dict:
    """What the machine code uses and executes; see `machine_code`."""
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        usage, sass = (_cuobjdump(what, file.name) for what in ('-res-usage', '-sass'))
    registers, stack = machine_code.parse_usage(usage)
    code = machine_code.parse_instructions(sass)
    return dict(
        registers=registers,
        stack=stack,
        spills=machine_code.spilled(code),
        instructions=len(code),
        tensor_cores=machine_code.tensor_core_instructions(code),
        loops=[dataclasses.asdict(loop) for loop in machine_code.main_loops(code)],
    )


def _cuobjdump(what: str, file: str) -> str:
    command = [str(_TOOLS / 'cuobjdump'), what, file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def entry(launch: Launch, uses: list[str], capability: int) -> dict:
    """The result of one kernel and architecture."""
    constants = {k: v for k, v in launch.constants if isinstance(v, (bool, int))}
    about = dict(
        kernel=launch.name,
        types=[kind for _, kind in launch.signature if kind.startswith('*')],
        constants=constants,
        options=dict(launch.options),
        uses=uses,
        capability=capability,
    )
    try:
        compiled = compile_launch(launch, capability)
        return about | analyze(compiled.asm['cubin']) | dict(shared=compiled.metadata.shared)
    except Exception as error:  # Triton and LLVM raise many kinds; each one fails the command.
        lines = [line for line in str(error).splitlines() if line.strip()]
        return about | dict(error=f'{type(error).__name__}: {lines[0] if lines else ""}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--capabilities', nargs='+', type=int, required=True)
    parser.add_argument('--quick', action='store_true')
    args = parser.parse_args()
    if os.environ.get('TRITON_INTERPRET') == '1':
        sys.exit('error: TRITON_INTERPRET is set, and an interpreted kernel cannot be compiled')
    for launch, uses in launches_by_use(quick=args.quick).items():
        for capability in args.capabilities:
            print(json.dumps(entry(launch, uses, capability)), flush=True)


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as cache:
        os.environ['TRITON_CACHE_DIR'] = cache
        main()
