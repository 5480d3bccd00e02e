"""Set up `.venv` with the pinned stack; where it is missing, incomplete or stale, make it anew.

With the argument `implementations`, install what the parity tests compare with, and with `triton`
each version that kernels are compiled with, by the pip of the Python that runs this. Needs nothing
but the standard library, and parses on older Pythons, so that they get as far as the line that
names the Python that is needed.
"""

import argparse
import contextlib
import fcntl
import glob
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VENV = os.path.join(ROOT, '.venv')
LOG = os.path.join(VENV, 'install.log')
STAMP = os.path.join(VENV, 'installed')
IMPLEMENTATIONS = os.path.join(VENV, 'implementations')
TRITON = os.path.join(VENV, 'triton')
CONSTRAINTS = os.path.join(ROOT, 'constraints.txt')
CACHE = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
CACHE = os.path.join(CACHE, 'swinv2_backbone')
PYTHON_VERSION = (3, 11)
# What mmcv's build needs; setup.py lists everything else.
BASE = ['setuptools', 'wheel', 'ninja', 'torch']
EXTRAS = 'openmmlab,hub,onnx,dev'
NETWORK_ERRORS = (
    'NewConnection|NameResolution|ConnectTimeout|ProxyError|SSLError|Connection refused'
)


class SetupError(Exception):
    """The set-up cannot go on; the message is the one line that the user sees."""


def say(text):
    print('-- ' + text, flush=True)


def read(path):
    """The text of a file, or '' if it does not exist."""
    if not os.path.exists(path):
        return ''
    with open(path) as file:
        return file.read()


def write(path, text):
    with open(path, 'w') as file:
        file.write(text)


def pinned(name):
    """The version of a package in the constraints file."""
    return re.search('^' + name + r'==(\S+)$', read(CONSTRAINTS), re.MULTILINE).group(1)


def check_machine():
    """Refuse a machine that lacks something that a later step needs."""
    here, needed = ('.'.join(map(str, v[:2])) for v in (sys.version_info, PYTHON_VERSION))
    if here != needed:
        need = f'Python {needed} is needed (the stack is pinned for it), this is {here}: '
        raise SetupError(need + f'run `make PYTHON=/path/to/python{needed} ...`')
    missing = []
    if importlib.util.find_spec('ensurepip') is None:
        missing.append(('the venv module', f'python{needed}-venv'))
    if compiled_mmcv() is None:
        if not shutil.which(os.environ.get('CXX', 'g++')):
            missing.append(('a C++ compiler', 'g++'))
        if not os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')):
            missing.append(("Python's headers", f'python{needed}-dev'))
    if missing:
        what, packages = zip(*missing, strict=True)
        apt = ' not found; on Debian: apt install ' + ' '.join(packages)
        raise SetupError(' and '.join(what) + apt)
    if os.path.lexists(VENV) and not os.path.exists(LOG):
        use = 'move it away, or use it as it is with `make PYTHON=.venv/bin/python ...`'
        raise SetupError('.venv was not made by `make env`: ' + use)


def run(command, failure, env=None):
    """Run a command, its output in the log; if it fails, say why in one line."""
    with open(LOG, 'a+') as log:
        begin = log.tell()
        # The command inherits the lock, so that the next set-up waits even if this one is killed.
        status = subprocess.call(command, stdout=log, stderr=log, env=env, close_fds=False)
        log.seek(begin)
        output = log.read()
    if status == 0:
        return
    if re.search(NETWORK_ERRORS, output):
        failure = 'no network: pip cannot reach a package index; connect or set PIP_INDEX_URL'
        raise SetupError(failure + ', and run again')
    errors = re.findall(r'error: +(.+)', output, re.IGNORECASE) or [f' status {status}']
    raise SetupError(f'{failure}: {errors[-1].strip()} (see {LOG})')


def pip(python, *args, failure, env=None):
    run([python, '-m', 'pip', '--disable-pip-version-check', '--retries', '2', *args], failure, env)


@contextlib.contextmanager
def lock():
    """Wait until no other set-up of this user is running: they share the folder of wheels."""
    os.makedirs(CACHE, exist_ok=True)
    with open(os.path.join(CACHE, 'lock'), 'w') as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('waiting for another set-up to end')
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wheel_folder(cuda=''):
    """Where the wheel is kept: one folder for each torch, and CUDA, it is compiled against."""
    tag = 'torch{}-cp{}{}'.format(pinned('torch'), *PYTHON_VERSION)
    return os.path.join(CACHE, 'wheels', tag + ('-cuda' + cuda if cuda else ''))


def compiled_mmcv(cuda=''):
    """A wheel of mmcv for this Python, from an earlier build or a folder of PIP_FIND_LINKS."""
    name = 'mmcv-{}-cp{}{}-*.whl'.format(pinned('mmcv'), *PYTHON_VERSION)
    folders = [wheel_folder(cuda), *os.environ.get('PIP_FIND_LINKS', '').split()]
    wheels = [glob.glob(os.path.join(glob.escape(folder), name)) for folder in folders]
    return next((found[0] for found in wheels if found), None)


def cuda_of_torch(python):
    """The CUDA release that the installed torch and this machine's nvcc share, or ''."""
    code = 'import torch; print(torch.cuda.is_available() and torch.version.cuda or "")'
    quiet = dict(stderr=subprocess.DEVNULL, text=True)
    release = subprocess.check_output([python, '-c', code], **quiet).strip()
    nvcc = shutil.which('nvcc') or '/usr/local/cuda/bin/nvcc'
    if not release or not os.path.exists(nvcc):
        return ''
    version = subprocess.check_output([nvcc, '--version'], **quiet)
    return release if 'release ' + release in version else ''


def build_mmcv(python, cuda):
    """Compile mmcv's operators from PyPI's sources; an interrupted build goes on where it was."""
    version, folder = pinned('mmcv'), wheel_folder(cuda)
    work = os.path.join(CACHE, 'build', os.path.basename(folder))
    source = os.path.join(work, 'mmcv-' + version)
    build = ['--no-deps', '--no-build-isolation']
    if not os.path.exists(source):
        download = ['download', '--no-binary', ':all:', '-d', work, 'mmcv==' + version]
        pip(python, *download, *build, failure='could not fetch mmcv')
        with tarfile.open(source + '.tar.gz') as archive:
            archive.extractall(os.path.join(work, 'partial'))
        os.rename(os.path.join(work, 'partial', 'mmcv-' + version), source)
    say("compiling mmcv's operators, once for this machine: 8 minutes on 2 cores, longer with CUDA")
    env = dict(os.environ, MMCV_WITH_OPS='1', FORCE_CUDA='1' if cuda else '0')
    env.setdefault('MAX_JOBS', str(os.cpu_count() or 1))
    # Python's own flags have -g, which more than doubles the time and is of no use here. setuptools
    # takes the flags of C++ from the one variable or the other, depending on its version.
    for variable in ('CFLAGS', 'CXXFLAGS'):
        env[variable] = env.get(variable, '') + ' -g0'
    # torch looks for ninja, which compiles on all cores and goes on after an interruption.
    env['PATH'] = os.path.dirname(python) + os.pathsep + env.get('PATH', '')
    if not cuda:
        env['CUDA_VISIBLE_DEVICES'] = ''  # Otherwise the build needs nvcc wherever there is a GPU.
    built = os.path.join(work, 'wheel')
    pip(python, 'wheel', *build, '-w', built, source, failure='could not compile mmcv', env=env)
    os.makedirs(folder, exist_ok=True)
    for wheel in glob.glob(os.path.join(built, 'mmcv-*.whl')):
        shutil.move(wheel, os.path.join(folder, os.path.basename(wheel)))
    shutil.rmtree(work)


def replace_opencv_without_libgl(python):
    """Install opencv's headless build over the other where libGL is missing, as on a bare server.

    mmengine and mmcv require the package that is not headless, by name; both hold one `cv2`.
    """
    probe = subprocess.run([python, '-c', 'import cv2'], stderr=subprocess.PIPE, text=True)
    if probe.returncode and re.search(r'lib\S+\.so', probe.stderr):
        say('no libGL here: using the headless build of opencv')
        headless = 'opencv-python-headless==' + pinned('opencv-python')
        force = ['install', '--no-deps', '--force-reinstall', headless]
        pip(python, *force, failure='could not install opencv-python-headless')


def fingerprint():
    """What the environment is made from."""
    files = CONSTRAINTS, os.path.join(ROOT, 'setup.py'), os.path.abspath(__file__)
    parts = [ROOT, *map(read, files)]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def set_up():
    """Make .venv anew."""
    python = os.path.join(VENV, 'bin', 'python')
    say('making .venv')
    shutil.rmtree(VENV, ignore_errors=True)
    os.makedirs(VENV)
    run([sys.executable, '-m', 'venv', VENV], 'could not make .venv')
    say('installing torch {} and the build tools'.format(pinned('torch')))
    pip(python, 'install', '-c', CONSTRAINTS, *BASE, failure='could not install torch')
    cuda = cuda_of_torch(python)
    if compiled_mmcv(cuda) is None:
        build_mmcv(python, cuda)
    wheel = compiled_mmcv(cuda)
    say('installing mmcv (' + wheel + '), mmdet, mmsegmentation and what they need')
    # The wheel by its path: pip's own cache may hold one that was built without operators.
    install = ['install', '--no-build-isolation', '-c', CONSTRAINTS, wheel]
    package = ROOT + '[' + EXTRAS + ']'
    pip(python, *install, '-e', package, failure='could not install OpenMMLab')
    replace_opencv_without_libgl(python)
    check = 'import mmdet, mmseg, mmcv.ops, swinv2_backbone'
    run([python, '-c', check], 'the installed stack cannot be imported')
    write(STAMP, fingerprint())
    say('.venv is ready')


def set_up_implementations():
    """Install what the parity tests compare with."""
    sys.path.insert(0, ROOT)
    from tools.benchmarking.implementations import packages_by_folder

    for name, packages in packages_by_folder().items():
        pins = [package + '==' + pinned(package) for package in packages]
        install_into(os.path.join(IMPLEMENTATIONS, name), pins)


def set_up_tritons():
    """Install the versions of Triton, each for processes of its own."""
    sys.path.insert(0, ROOT)
    from tools.gpu.tritons import TRITONS

    for version in TRITONS:
        install_into(os.path.join(TRITON, version), ['triton==' + version])


def install_into(folder, pins):
    """Install packages into a folder, which is put on the path of the processes that need them."""
    if read(os.path.join(folder, 'installed')) == ' '.join(pins):
        return
    say('installing, beside the environment: ' + ', '.join(pins))
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    # Without dependencies: those are in the environment, and must stay at their versions.
    target = ['install', '--no-deps', '--target', folder]
    pip(sys.executable, *target, *pins, failure='could not install ' + os.path.basename(folder))
    write(os.path.join(folder, 'installed'), ' '.join(pins))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    others = {'implementations': set_up_implementations, 'triton': set_up_tritons}
    parser.add_argument('what', nargs='?', choices=['stack', *others], default='stack')
    what = parser.parse_args().what
    try:
        if what in others:
            with lock():
                others[what]()
        elif read(STAMP) != fingerprint():
            check_machine()
            with lock():
                if read(STAMP) != fingerprint():  # not made while this one waited
                    set_up()
    except SetupError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted; run again to go on')


if __name__ == '__main__':
    main()
