"""mmcv with its operators: the wheel that is at hand, or one that is compiled.

Needs nothing but the standard library, and parses on older Pythons.
"""

import glob
import os
import shutil
import subprocess
import tarfile

from tools.misc import stacks
from tools.misc.stacks import say

PYTHON_VERSION = (3, 11)


def wheel_folder(stack, cuda=''):
    """Where the wheel is kept: one folder for each torch, and CUDA, it is compiled against."""
    tag = 'torch{}-cp{}{}'.format(stack.pinned('torch'), *PYTHON_VERSION)
    return os.path.join(stacks.CACHE, 'wheels', tag + ('-cuda' + cuda if cuda else ''))


def source_name(stack):
    """What the archive of the sources and the wheel are called, without what follows."""
    return stack.name('mmcv').replace('-', '_') + '-' + stack.pinned('mmcv')


def compiled_mmcv(stack, cuda=''):
    """A wheel of mmcv for this Python, from an earlier build or a folder of PIP_FIND_LINKS."""
    name = source_name(stack) + '-cp{}{}-*.whl'.format(*PYTHON_VERSION)
    folders = [wheel_folder(stack, cuda), *os.environ.get('PIP_FIND_LINKS', '').split()]
    wheels = [glob.glob(os.path.join(glob.escape(folder), name)) for folder in folders]
    return next((found[0] for found in wheels if found), None)


def cuda_of_torch(stack):
    """The CUDA release that the installed torch and this machine's nvcc share, or ''."""
    code = 'import torch; print(torch.cuda.is_available() and torch.version.cuda or "")'
    quiet = dict(stderr=subprocess.DEVNULL, text=True)
    release = subprocess.check_output([stack.python, '-c', code], **quiet).strip()
    nvcc = shutil.which('nvcc') or '/usr/local/cuda/bin/nvcc'
    if not release or not os.path.exists(nvcc):
        return ''
    version = subprocess.check_output([nvcc, '--version'], **quiet)
    return release if 'release ' + release in version else ''


def build_mmcv(stack, cuda):
    """Compile mmcv's operators from PyPI's sources; an interrupted build goes on where it was."""
    name, folder = source_name(stack), wheel_folder(stack, cuda)
    work = os.path.join(stacks.CACHE, 'build', stack.name('mmcv') + '-' + os.path.basename(folder))
    source = os.path.join(work, name)
    build = ['--no-deps', '--no-build-isolation']
    if not os.path.exists(source):
        download = ['download', '--no-binary', ':all:', '-d', work, stack.requirement('mmcv')]
        stack.pip(*download, *build, failure='could not fetch mmcv')
        with tarfile.open(source + '.tar.gz') as archive:
            archive.extractall(os.path.join(work, 'partial'))
        os.rename(os.path.join(work, 'partial', name), source)
    say("compiling mmcv's operators, once for this machine: 8 minutes on 2 cores, longer with CUDA")
    env = dict(os.environ, MMCV_WITH_OPS='1', FORCE_CUDA='1' if cuda else '0')
    env.setdefault('MAX_JOBS', str(os.cpu_count() or 1))
    # Python's own flags have -g, which more than doubles the time and is of no use here. setuptools
    # takes the flags of C++ from the one variable or the other, depending on its version.
    for variable in ('CFLAGS', 'CXXFLAGS'):
        env[variable] = env.get(variable, '') + ' -g0'
    # torch looks for ninja, which compiles on all cores and goes on after an interruption.
    env['PATH'] = os.path.dirname(stack.python) + os.pathsep + env.get('PATH', '')
    if not cuda:
        env['CUDA_VISIBLE_DEVICES'] = ''  # Otherwise the build needs nvcc wherever there is a GPU.
    built = os.path.join(work, 'wheel')
    stack.pip('wheel', *build, '-w', built, source, failure='could not compile mmcv', env=env)
    os.makedirs(folder, exist_ok=True)
    for wheel in glob.glob(os.path.join(built, '*mmcv-*.whl')):
        shutil.move(wheel, os.path.join(folder, os.path.basename(wheel)))
    shutil.rmtree(work)
