"""Run the core tests in a scratch environment with another Python and torch.

Core tests need torch and mmengine, but none of the toolboxes.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ('tests/layers', 'tests/checkpoints', 'tests/regressions', 'tests/parity/test_recorded.py')
REQUIREMENTS = (
    'mmengine',
    'safetensors',
    'huggingface_hub',
    'pytest',
    'pytest-xdist',
    'hypothesis',
    # A test installs the package without build isolation.
    'setuptools',
    'wheel',
)


def floor() -> str:
    """The oldest torch that setup.py allows."""
    return re.search(r"'torch>=([\d.]+)'", (ROOT / 'setup.py').read_text()).group(1)


def requirements(torch: str) -> list[str]:
    """What pip installs for 'floor', 'newest' or a version of torch."""
    version = floor() if torch == 'floor' else torch
    if version == 'newest':
        return ['torch', *REQUIREMENTS]
    version += '.*' * (version.count('.') == 1)
    return [f'torch=={version}', *REQUIREMENTS]


def core_tests() -> list[str]:
    """The tests that need no toolbox; those at the top skip where they need one."""
    return [*TESTS, *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob('tests/test_*.py')))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'torch', help="'floor' (of setup.py), 'newest' or a version such as 2.9 or 2.9.1"
    )
    parser.add_argument('--python', default=sys.executable, help='the Python (default: this one)')
    parser.add_argument('--with', nargs='+', default=[], dest='more', help='further requirements')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([args.python, '-m', 'venv', folder], check=True)
        python = f'{folder}/bin/python'
        install = [python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check']
        subprocess.run([*install, *requirements(args.torch), *args.more], check=True)
        shown = 'import sys, torch; print("-- torch", torch.__version__, "Python", sys.version)'
        subprocess.run([python, '-c', shown], check=True)
        run = [python, '-m', 'pytest', '-q', '-n', 'auto', '--dist', 'worksteal', *core_tests()]
        sys.exit(subprocess.run(run, cwd=ROOT).returncode)


if __name__ == '__main__':
    main()
