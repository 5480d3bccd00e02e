"""Set up `.venv` with the pinned stack; where it is missing, incomplete or stale, make it anew.

With the argument `implementations`, install what the parity tests compare with, and with `triton`
each version that kernels are compiled with, by the pip of the Python that runs this. Needs nothing
but the standard library, and parses on older Pythons, so that they get as far as the line that
names the Python that is needed.
"""

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tools.misc.compiled_mmcv import PYTHON_VERSION, build_mmcv, compiled_mmcv, cuda_of_torch
from tools.misc.stacks import ROOT, STACKS, SetupError, lock, read, say, write

# What mmcv's build needs.
BASE = ['setuptools', 'wheel', 'ninja', 'torch']
# The extra [openmmlab] of setup.py, without mmcv, by the names that a stack has for them.
OPENMMLAB = ['mmengine', 'mmdet', 'mmsegmentation', 'ftfy', 'regex']
# Those of setup.py that are installed beside it.
EXTRAS = 'hub,onnx,dev'


def check_machine(stack, operators):
    """Refuse a machine that lacks something that a later step needs."""
    here, needed = ('.'.join(map(str, v[:2])) for v in (sys.version_info, PYTHON_VERSION))
    if here != needed:
        need = f'Python {needed} is needed (the stack is pinned for it), this is {here}: '
        raise SetupError(need + f'run `make PYTHON=/path/to/python{needed} ...`')
    missing = []
    if importlib.util.find_spec('ensurepip') is None:
        missing.append(('the venv module', f'python{needed}-venv'))
    if operators and compiled_mmcv(stack) is None:
        if not shutil.which(os.environ.get('CXX', 'g++')):
            missing.append(('a C++ compiler', 'g++'))
        if not os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')):
            missing.append(("Python's headers", f'python{needed}-dev'))
    if missing:
        what, packages = zip(*missing, strict=True)
        apt = ' not found; on Debian: apt install ' + ' '.join(packages)
        raise SetupError(' and '.join(what) + apt)
    if os.path.lexists(stack.venv) and not os.path.exists(stack.log):
        name = os.path.basename(stack.venv)
        use = f'move it away, or use it as it is with `make PYTHON={name}/bin/python ...`'
        raise SetupError(f'{name} was not made by `make env`: {use}')


def replace_opencv_without_libgl(stack):
    """Install opencv's headless build over the other where libGL is missing, as on a bare server.

    mmengine and mmcv require the package that is not headless, by name; both hold one `cv2`.
    """
    probe = subprocess.run([stack.python, '-c', 'import cv2'], stderr=subprocess.PIPE, text=True)
    if probe.returncode and re.search(r'lib\S+\.so', probe.stderr):
        say('no libGL here: using the headless build of opencv')
        headless = 'opencv-python-headless==' + stack.pinned('opencv-python')
        force = ['install', '--no-deps', '--force-reinstall', headless]
        stack.pip(*force, failure='could not install opencv-python-headless')


def fingerprint(stack, operators):
    """What an environment is made from, with mmcv's operators or without."""
    folder = os.path.dirname(os.path.abspath(__file__))
    files = [
        os.path.join(folder, name + '.py') for name in ('bootstrap', 'compiled_mmcv', 'stacks')
    ]
    parts = [ROOT, str(stack.pins()), *map(read, [*files, os.path.join(ROOT, 'setup.py')])]
    digest = hashlib.sha256('\0'.join(parts).encode()).hexdigest()
    return digest + (' with operators' if operators else ' without operators')


def is_ready(stack, operators):
    """Whether the environment is complete, and made from what lies here."""
    allowed = [True] if operators else [True, False]
    return read(stack.stamp) in [fingerprint(stack, each) for each in allowed]


def set_up(stack, operators):
    """Make the environment anew, or add the operators to one that has none."""
    if not is_ready(stack, operators=False):
        make_anew(stack)
    if not is_ready(stack, operators):
        add_operators(stack)


def make_anew(stack):
    """Install the stack, without mmcv's operators if they would have to be compiled."""
    name = os.path.basename(stack.venv)
    say('making ' + name)
    shutil.rmtree(stack.venv, ignore_errors=True)
    os.makedirs(stack.venv)
    stack.run([sys.executable, '-m', 'venv', stack.venv], 'could not make ' + name)
    if stack.overrides:
        write(stack.constraints, ''.join(f'{k}=={v}\n' for k, v in stack.pins().items()))
    constrained = ['install', '-c', stack.constraints]
    say('installing torch {} and the build tools'.format(stack.pinned('torch')))
    stack.pip(*constrained, *BASE, failure='could not install torch')
    wheel = compiled_mmcv(stack, cuda_of_torch(stack))
    # The wheel by its path: pip's own cache may hold one that was built without operators.
    mmcv = wheel or stack.without_operators
    say(f'installing mmcv ({mmcv}), mmdet, mmsegmentation and what they need')
    packages = [stack.name(package) for package in OPENMMLAB]
    ours = ['-e', ROOT + '[' + EXTRAS + ']']
    stack.pip(*constrained, mmcv, *packages, *ours, failure='could not install OpenMMLab')
    replace_opencv_without_libgl(stack)
    complete(stack, operators=wheel is not None)


def add_operators(stack):
    """Replace an mmcv without operators by one that has them."""
    cuda = cuda_of_torch(stack)
    if compiled_mmcv(stack, cuda) is None:
        build_mmcv(stack, cuda)
    wheel = compiled_mmcv(stack, cuda)
    say(f'installing mmcv ({wheel})')
    os.remove(stack.stamp)
    remove = ['uninstall', '-y', stack.without_operators]
    stack.pip(*remove, failure='could not remove ' + stack.without_operators)
    stack.pip('install', '--no-deps', wheel, failure='could not install mmcv')
    complete(stack, operators=True)


def complete(stack, operators):
    """Import what was installed, and record that the environment is complete."""
    # `tools` lets it be imported without the operators.
    check = 'import mmcv.ops, mmdet, mmseg' if operators else 'import tools, mmdet, mmseg, mmcv.ops'
    command = [stack.python, '-c', check + ', swinv2_backbone']
    stack.run(command, 'the installed stack cannot be imported')
    write(stack.stamp, fingerprint(stack, operators))
    without = '' if operators else "; mmcv's operators are not compiled, segmentation needs none"
    say(os.path.basename(stack.venv) + ' is ready' + without)


def set_up_implementations(stack):
    """Install what the parity tests compare with."""
    from tools.benchmarking.implementations import packages_by_folder

    for name, packages in packages_by_folder().items():
        pins = [stack.requirement(package) for package in packages]
        install_into(stack, os.path.join('implementations', name), pins)


def set_up_tritons(stack):
    """Install the versions of Triton, each for processes of its own."""
    from tools.gpu.tritons import TRITONS

    for version in TRITONS:
        install_into(stack, os.path.join('triton', version), ['triton==' + version])


def install_into(stack, name, pins):
    """Install packages into a folder, which is put on the path of the processes that need them."""
    folder = os.path.join(stack.venv, name)
    if read(os.path.join(folder, 'installed')) == ' '.join(pins):
        return
    say('installing, beside the environment: ' + ', '.join(pins))
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    # Without dependencies: those are in the environment, and must stay at their versions.
    target = ['install', '--no-deps', '--target', folder]
    failure = 'could not install ' + os.path.basename(folder)
    stack.pip(*target, *pins, failure=failure, python=sys.executable)
    write(os.path.join(folder, 'installed'), ' '.join(pins))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('what', nargs='?', choices=['stack', *OTHERS], default='stack')
    parser.add_argument('--stack', choices=STACKS, default='official')
    parser.add_argument(
        '--without-operators',
        action='store_true',
        help="compile none of mmcv's operators; a wheel of mmcv that has them is used",
    )
    return parser.parse_args()


OTHERS = {'implementations': set_up_implementations, 'triton': set_up_tritons}


def main():
    args = parse_args()
    stack, operators = STACKS[args.stack], not args.without_operators
    try:
        if args.what in OTHERS:
            with lock():
                OTHERS[args.what](stack)
        elif not is_ready(stack, operators):
            check_machine(stack, operators)
            with lock():
                if not is_ready(stack, operators):  # not made while this one waited
                    set_up(stack, operators)
    except SetupError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted; run again to go on')


if __name__ == '__main__':
    main()
