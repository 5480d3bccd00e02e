"""Download the wheels that a GPU machine without a network lacks for `make gpu-report`.

What it has is taken to be Python 3.12 on x86-64 Linux with torch 2.11 and Triton 3.6. Writes the
wheels, and the names of their packages, to a folder that is not in git; it travels with the
checkout, and `pip install --find-links` there adds those that are missing.
"""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.misc.stacks import ROOT, STACKS

FOLDER = Path(ROOT, '.gpu_wheels')
PYTHON_VERSION = '3.12'
# mmengine, with all that importing it needs (of what it requires, neither opencv nor matplotlib);
# timm, with what its models need. At the versions of constraints.txt.
PACKAGES = (
    *('mmengine', 'addict', 'termcolor', 'yapf', 'platformdirs', 'rich', 'markdown-it-py'),
    *('mdurl', 'Pygments', 'PyYAML', 'packaging', 'numpy'),
    *('timm', 'huggingface_hub', 'safetensors', 'tqdm', 'pillow'),
)
# Of torch 2.11, not of the torch that is pinned.
OTHER_VERSIONS = {'torchvision': '0.26.0'}
_PLATFORMS = ('manylinux_2_28_x86_64', 'manylinux_2_27_x86_64', 'manylinux2014_x86_64')


def command(folder: Path) -> list[str]:
    """The call of pip that downloads the wheels."""
    pins = [STACKS['official'].requirement(name) for name in PACKAGES]
    pins += [f'{name}=={version}' for name, version in OTHER_VERSIONS.items()]
    target = ['--only-binary=:all:', '--implementation', 'cp', '--python-version', PYTHON_VERSION]
    for platform in _PLATFORMS:
        target += ['--platform', platform]
    pip = [
        sys.executable,
        '-m',
        'pip',
        '--disable-pip-version-check',
        'download',
        '-q',
        '--no-deps',
    ]
    return [*pip, *target, '-d', str(folder), *pins]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=FOLDER)
    folder = parser.parse_args().out
    status = subprocess.run(command(folder)).returncode
    if status:
        sys.exit(f'error: pip could not download the wheels (status {status})')
    (folder / 'names.txt').write_text('\n'.join([*PACKAGES, *OTHER_VERSIONS]) + '\n')
    wheels = list(folder.glob('*.whl'))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f'-> {folder}: {len(wheels)} wheels, {size / 1e6:.0f} MB')


if __name__ == '__main__':
    main()
