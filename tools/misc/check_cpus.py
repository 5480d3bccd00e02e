"""Run the numeric tests with other instructions of the CPU and other numbers of threads.

Kernels of torch and oneDNN differ between CPUs. Here they are limited to older instructions, so
that a tolerance that suits one CPU alone is found on any. Ends with a table, and with status 1 if
a run failed.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch

from tools.utils.table import format_table

TESTS = (
    'tests/layers',
    'tests/regressions',
    'tests/test_dense_reference.py',
    'tests/test_swin_transformer_v2.py',
    'tests/test_window_transfer.py',
    'tests/parity/test_recorded.py',
)
# What ATen and oneDNN call the same instructions, from the oldest on.
CAPABILITIES = {'default': 'SSE41', 'avx2': 'AVX2', 'avx512': 'AVX512_CORE'}
THREADS = (1, 2, 4)


def available(newest: str) -> list[str]:
    """The capabilities of CAPABILITIES that a CPU has, given its newest in torch's spelling."""
    names = list(CAPABILITIES)
    last = names.index(newest.lower()) if newest.lower() in names else 0
    return names[: last + 1]


def run_tests(capability: str, threads: int, tests: list[str]) -> tuple[bool, str]:
    """Whether the tests pass, and pytest's summary of them."""
    workers = max(1, (os.cpu_count() or 1) // threads)
    variables = dict(
        ATEN_CPU_CAPABILITY=capability,
        ONEDNN_MAX_CPU_ISA=CAPABILITIES[capability],
        OMP_NUM_THREADS=str(threads),
    )
    command = [sys.executable, '-m', 'pytest', '-q', '-n', str(workers), '--dist', 'worksteal']
    process = subprocess.run(
        [*command, *tests],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if process.returncode:
        print(process.stdout)
    summary = re.findall(r'^\d+ (?:passed|failed|skipped|error).* in .*$', process.stdout, re.M)
    return process.returncode == 0, summary[-1] if summary else 'did not run'


def main() -> None:
    """Run the tests given on the command line, or the numeric ones."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('tests', nargs='*', default=TESTS, help='for pytest')
    tests = parser.parse_args().tests
    newest = torch.backends.cpu.get_cpu_capability()
    rows, passed = [('capability, threads', 'result')], True
    for capability in CAPABILITIES:
        for threads in THREADS:
            if capability in available(newest):
                ok, result = run_tests(capability, threads, tests)
                passed &= ok
            else:
                result = f'skipped: this CPU has {newest}'
            rows.append((f'{capability}, {threads}', result))
            print(f'-- {rows[-1][0]}: {result}', file=sys.stderr, flush=True)
    print(format_table(rows))
    sys.exit(0 if passed else 1)


if __name__ == '__main__':
    main()
