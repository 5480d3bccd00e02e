"""The machine and the software that a benchmark ran with."""

import datetime
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from tools.benchmarking.implementations import IMPLEMENTATIONS
from tools.benchmarking.process import ROOT

# The instructions that decide how matrix products run on a CPU.
_CPU_FLAGS = ('avx512f', 'avx512_bf16', 'amx_tile')
_LIBRARIES = (
    'torch',
    'triton',
    'onnxruntime',
    'openvino',
    'nncf',
    'torchao',
    'mmengine',
    *dict.fromkeys(i.packages[0] for i in IMPLEMENTATIONS.values()),
)


def describe(device: str, threads: int, implementations_folder: Path) -> dict:
    """Device, versions, date, command line and commit: all that a number depends on."""
    return dict(
        device=torch.cuda.get_device_name() if device == 'cuda' else cpu_info()['model name'],
        cpu_flags=[flag for flag in _CPU_FLAGS if flag in cpu_info()['flags'].split()],
        threads=threads,
        python=platform.python_version(),
        versions={name: version(name, implementations_folder) for name in _LIBRARIES},
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        command=shlex.join(sys.argv),
        commit=commit(),
    )


def cpu_info() -> dict[str, str]:
    """'model name' and 'flags' of the first CPU; '' where the system does not give them."""
    found = {'model name': platform.processor() or platform.machine(), 'flags': ''}
    path = Path('/proc/cpuinfo')
    for line in reversed(path.read_text().splitlines() if path.exists() else []):
        key, _, value = line.partition(':')
        if key.strip() in found:
            found[key.strip()] = value.strip()
    return found


def version(library: str, implementations_folder: Path) -> str | None:
    """The version of a library that the workers import, or None if it is not installed."""
    path = [*(str(folder) for folder in sorted(implementations_folder.glob('*'))), *sys.path]
    names = library, 'onedl-' + library  # the maintained forks of OpenMMLab's
    found = (each for name in names for each in metadata.distributions(name=name, path=path))
    return next((each.version for each in found), None)


def commit() -> str | None:
    """The commit of this repository, with '+' if files differ from it; None outside of git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ['git', *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git('rev-parse', 'HEAD') + '+' * bool(git('status', '--porcelain'))
    except (OSError, subprocess.CalledProcessError):
        return None
