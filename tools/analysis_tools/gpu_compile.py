"""Compile all kernels of the package for GPUs that are not there, and write what they use.

Each version of Triton has a folder (`make .venv/triton`) and a process of its own. Fails if a
kernel does not compile, or spills registers on sm_90.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from swinv2_backbone.checkpoints.files import atomic_file
from tools.benchmarking.measurement import say
from tools.benchmarking.process import ROOT
from tools.gpu import compiled_report
from tools.gpu.tritons import FOLDER, TRITONS
from tools.utils import cli
from tools.utils.errors import UserError

CAPABILITIES = (80, 90, 100)


def start(version: str, folder: Path, capabilities: list[int], quick: bool) -> subprocess.Popen:
    """Start the process that compiles with one version of Triton.

    Raises:
        UserError: If that version is not there.
    """
    path = folder / version
    if not (path / 'triton').is_dir():
        raise UserError(f'triton {version} is not in {path}: run `make .venv/triton`')
    paths = [str(path), str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    command = [sys.executable, '-m', 'tools.gpu.compile_worker', *['--quick'] * quick]
    return subprocess.Popen(
        [*command, '--capabilities', *map(str, capabilities)],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths), 'TRITON_INTERPRET': '0'},
        stdout=subprocess.PIPE,
        text=True,
    )


def collect(version: str, process: subprocess.Popen) -> list[dict]:
    """The results of a process.

    Raises:
        RuntimeError: If it failed; it has said why on standard error.
    """
    found = []
    with process:
        for line in process.stdout:
            found.append({'triton': version, **json.loads(line)})
            if len(found) % 20 == 0:
                say(f'triton {version}: {len(found)} compiled')
    if process.returncode:
        raise RuntimeError(f'compiling with triton {version} ended with {process.returncode}')
    return found


def main() -> None:
    parser = cli.OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/benchmarks/gpu_compiled.md')
    parser.add_argument('--tritons', nargs='+', default=list(TRITONS), help='versions')
    parser.add_argument('--folder', type=Path, default=FOLDER, help='where each version has one')
    parser.add_argument('--capabilities', nargs='+', type=int, default=list(CAPABILITIES))
    parser.add_argument('--quick', action='store_true', help='the first launch of each kernel')
    args = parser.parse_args()
    processes = {v: start(v, args.folder, args.capabilities, args.quick) for v in args.tritons}
    # At once: a process waits while nobody reads what it prints.
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(collect, processes, processes.values()))
    entries = [each for part in parts for each in part]
    text = compiled_report.document(entries, args.tritons, torch.__version__)
    with atomic_file(args.out) as partial:
        Path(partial).write_text(text)
    failures = compiled_report.failures(entries)
    print(f'-> {args.out}: {len(entries)} compiled, {len(failures)} failures')
    for failure in failures:
        print(failure)
    sys.exit(1 if failures else 0)


if __name__ == '__main__':
    cli.run(main)
