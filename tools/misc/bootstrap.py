"""Set up `.venv` with the pinned stack, from any state: fresh, half done or complete.

Needs nothing but the standard library, and parses on older Pythons, so that they get as far as the
line that says which Python it takes.
"""

import fcntl
import glob
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from importlib import metadata

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VENV = os.path.join(ROOT, '.venv')
PYTHON = os.path.join(VENV, 'bin', 'python')
CONSTRAINTS = os.path.join(ROOT, 'constraints.txt')
LOG = os.path.join(VENV, 'install.log')
STAMP = os.path.join(VENV, 'installed')
CACHE = os.path.join(
    os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'swinv2_backbone'
)
PYTHON_WANTED = (3, 11)
# What mmcv's build and everything else stand on, and then everything else.
BASE = ['setuptools', 'wheel', 'ninja', 'torch']
STACK = [
    'mmengine',
    'mmcv',
    'mmdet',
    'mmsegmentation',
    'ftfy',
    'regex',
    'safetensors',
    'huggingface_hub',
    'onnx',
    'onnxscript',
    'onnxruntime',
    'pytest',
    'hypothesis',
    'ruff',
]
# The other implementations, for parity tests. Each folder goes before .venv on the path: in there
# torchvision would disturb mmengine, and mmpretrain cannot be imported beside transformers.
IMPLEMENTATIONS_FOLDER = os.path.join(VENV, 'implementations')
IMPLEMENTATIONS = {
    'hf': ['transformers', 'tokenizers', 'timm', 'torchvision'],
    'mmpretrain': [
        'mmpretrain',
        'torchvision',
        'einops',
        'model-index',
        'ordered-set',
        'markdown',
        'mat4py',
        'importlib-metadata',
        'zipp',
    ],
}
NETWORK_SIGNS = (
    'NewConnectionError',
    'NameResolutionError',
    'ConnectTimeout',
    'ProxyError',
    'Temporary failure in name resolution',
    'Connection refused',
    'SSLError',
)


_lock = []  # The descriptor of the lock, once it is held.


class SetupError(Exception):
    """The set-up cannot go on; the message is the one line that the user sees."""


def say(text):
    print('-- ' + text, flush=True)


def pinned(name):
    """The version of a package in the constraints file."""
    with open(CONSTRAINTS) as file:
        return re.search('^' + name + r'==(\S+)$', file.read(), re.MULTILINE).group(1)


# --- what must be there ---------------------------------------------------------------------------


def check_machine():
    """Refuse a machine on which a later step would fail for want of something."""
    here, wanted = ('.'.join(map(str, v[:2])) for v in (sys.version_info, PYTHON_WANTED))
    if here != wanted:
        raise SetupError(
            f'Python {wanted} is needed (the stack is pinned for it), this is {here}: '
            f'run `make PYTHON=/path/to/python{wanted} ...`'
        )
    missing = []
    if importlib.util.find_spec('ensurepip') is None:
        missing.append(('the venv module', f'python{wanted}-venv'))
    if compiled_mmcv() is None:
        if not shutil.which(os.environ.get('CXX', 'g++')):
            missing.append(('a C++ compiler', 'g++'))
        if not os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')):
            missing.append(("Python's headers", f'python{wanted}-dev'))
    if missing:
        raise SetupError(
            ' and '.join(what for what, _ in missing) + ' not found; on Debian: '
            'apt install ' + ' '.join(package for _, package in missing)
        )


# --- the virtual environment ----------------------------------------------------------------------


def make_venv():
    """Make .venv, anew if an interrupted run left one without a working pip."""
    if (
        os.path.exists(PYTHON)
        and subprocess.call(
            [PYTHON, '-m', 'pip', '--version'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        == 0
    ):
        return
    say('making .venv')
    os.makedirs(VENV, exist_ok=True)
    # Not --clear: the log of this very command lies in there.
    shutil.rmtree(os.path.join(VENV, 'lib'), ignore_errors=True)
    run([sys.executable, '-m', 'venv', VENV], 'could not make .venv')


def remove_half_installed():
    """Remove what an interrupted pip left behind, so that it installs it again."""
    # Not by sysconfig, which on Debian's own Python answers with another folder.
    site = os.path.join(VENV, 'lib', 'python{}.{}'.format(*PYTHON_WANTED), 'site-packages')
    for leftover in glob.glob(os.path.join(glob.escape(site), '~*')):  # pip's own back-ups
        shutil.rmtree(leftover, ignore_errors=True)
    for info in glob.glob(os.path.join(glob.escape(site), '*.dist-info')):
        files = (
            metadata.PathDistribution.at(info).files
            if os.path.exists(os.path.join(info, 'RECORD'))
            else None
        )
        if files is None or not all(
            os.path.exists(os.path.join(site, str(file))) for file in files if file.suffix != '.pyc'
        ):
            say('installing again what was interrupted: ' + os.path.basename(info))
            shutil.rmtree(info)


def pip(*args, **options):
    run([PYTHON, '-m', 'pip', '--disable-pip-version-check', '--retries', '2', *args], **options)


# --- mmcv's compiled operators --------------------------------------------------------------------


def cuda_of_torch():
    """The CUDA release that both the installed torch and this machine's nvcc are of, or ''.

    Only then can operators for the GPU be compiled; in all other cases they are for the CPU.
    """
    probe = subprocess.run(
        [
            PYTHON,
            '-c',
            'import torch; print(torch.cuda.is_available() and torch.version.cuda or "")',
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    release = probe.stdout.strip()
    nvcc = shutil.which('nvcc') or shutil.which(
        'nvcc', path=os.path.join(os.environ.get('CUDA_HOME', '/usr/local/cuda'), 'bin')
    )
    if not release or not nvcc:
        return ''
    version = subprocess.run([nvcc, '--version'], stdout=subprocess.PIPE, text=True).stdout
    return release if f'release {release}' in version else ''


def wheel_folder(cuda=''):
    """Where the wheel is kept: one folder for each torch, and CUDA, it is compiled against."""
    tag = 'torch{}-cp{}{}'.format(pinned('torch'), *PYTHON_WANTED)
    return os.path.join(CACHE, 'wheels', tag + ('-cuda' + cuda if cuda else ''))


def compiled_mmcv(cuda=''):
    """A wheel of mmcv for this Python, from an earlier build or a folder of PIP_FIND_LINKS."""
    name = 'mmcv-{}-cp{}{}-*.whl'.format(pinned('mmcv'), *PYTHON_WANTED)
    for folder in [wheel_folder(cuda), *os.environ.get('PIP_FIND_LINKS', '').split()]:
        for wheel in glob.glob(os.path.join(glob.escape(folder), name)):
            return wheel
    return None


def build_mmcv(cuda):
    """Compile mmcv's operators from PyPI's sources; an interrupted build goes on where it was."""
    version, folder = pinned('mmcv'), wheel_folder(cuda)
    work = os.path.join(CACHE, 'build', os.path.basename(folder))
    source = os.path.join(work, 'mmcv-' + version)
    os.makedirs(work, exist_ok=True)
    if not os.path.isdir(source):
        say('fetching the sources of mmcv ' + version)
        pip(
            'download',
            '--no-deps',
            '--no-binary',
            ':all:',
            '--no-build-isolation',
            '-d',
            work,
            'mmcv==' + version,
            failure='could not fetch mmcv',
        )
        partial = os.path.join(work, 'partial')
        with tarfile.open(os.path.join(work, f'mmcv-{version}.tar.gz')) as archive:
            archive.extractall(partial)
        os.rename(os.path.join(partial, 'mmcv-' + version), source)
    say(
        "compiling mmcv's operators, once for this machine: 15 CPU-minutes, 8 minutes on 2 cores"
        + (f' (longer: with CUDA {cuda})' if cuda else ', operators for the CPU')
    )
    kinds = ['*.cpp', 'cpu/*.cpp'] + (['cuda/*.cpp', 'cuda/*.cu'] if cuda else [])
    sources = sum(
        len(glob.glob(os.path.join(source, 'mmcv/ops/csrc/pytorch', kind))) for kind in kinds
    )
    environment = {**os.environ, 'MMCV_WITH_OPS': '1', 'FORCE_CUDA': '1' if cuda else '0'}
    environment.setdefault('MAX_JOBS', str(os.cpu_count() or 1))
    # Python's own flags have -g, which more than doubles the time and is of no use here. setuptools
    # takes the flags of C++ from the one variable or the other, depending on its version.
    for variable in ('CFLAGS', 'CXXFLAGS'):
        environment[variable] = environment.get(variable, '') + ' -g0'
    # torch looks for ninja, which compiles on all cores and goes on after an interruption.
    environment['PATH'] = os.path.dirname(PYTHON) + os.pathsep + environment.get('PATH', '')
    if not cuda:
        environment['CUDA_VISIBLE_DEVICES'] = ''  # or the build asks for nvcc wherever a GPU is
    built = os.path.join(work, 'wheel')
    pip(
        'wheel',
        '--no-deps',
        '--no-build-isolation',
        '-w',
        built,
        source,
        env=environment,
        failure='could not compile mmcv',
        progress=lambda: '{} of {} files'.format(
            len(glob.glob(os.path.join(source, 'build/**/*.o'), recursive=True)), sources
        ),
    )
    os.makedirs(folder, exist_ok=True)
    for wheel in glob.glob(os.path.join(built, 'mmcv-*.whl')):
        shutil.move(wheel, os.path.join(folder, os.path.basename(wheel)))
    shutil.rmtree(work)


# --- running things -------------------------------------------------------------------------------


def run(command, failure, progress=None, env=None):
    """Run a command, its output in the log; if it fails, say why in one line."""
    with open(LOG, 'a+') as log:
        begin = log.tell()
        log.write('\n$ ' + ' '.join(command) + '\n')
        log.flush()
        # A session of its own, so that what pip starts can be ended with it; and it holds the lock,
        # so that the next set-up waits even for what outlives a killed one.
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=env,
            start_new_session=True,
            pass_fds=_lock,
        )
        try:
            watch(process, progress)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        if process.returncode == 0:
            return
        log.seek(begin)
        output = log.read()
    if any(sign in output for sign in NETWORK_SIGNS):
        raise SetupError(
            'no network: pip cannot reach a package index; connect, or name one in '
            'PIP_INDEX_URL, and run again'
        )
    errors = re.findall(r'error: +(.+)', output, re.IGNORECASE)
    raise SetupError(
        '{}: {} (all of it: {})'.format(
            failure, errors[-1].strip() if errors else f'status {process.returncode}', LOG
        )
    )


def take_lock():
    """Wait until no other set-up of this user's is at work: they share the folder of wheels."""
    os.makedirs(CACHE, exist_ok=True)
    lock = os.open(os.path.join(CACHE, 'lock'), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say('waiting for another set-up to end')
        fcntl.flock(lock, fcntl.LOCK_EX)
    _lock.append(lock)


def watch(process, progress):
    """Wait for a process, showing the time and what `progress()` says."""
    terminal, begin, shown = sys.stdout.isatty(), time.time(), False
    while True:
        try:
            process.wait(timeout=1 if terminal else 30)
            break
        except subprocess.TimeoutExpired:
            minutes, seconds = divmod(int(time.time() - begin), 60)
            text = f'   {minutes}:{seconds:02d} ' + (progress() if progress else '')
            print(text, end='\r' if terminal else '\n', flush=True)
            shown = True
    if shown and terminal:
        print()


# --- all of it ------------------------------------------------------------------------------------


def replace_opencv_without_libgl():
    """Lay opencv's headless build over the other where libGL is missing, as on a bare server.

    mmengine and mmcv require the package that is not headless, by name; both hold one `cv2`.
    """
    probe = subprocess.run([PYTHON, '-c', 'import cv2'], stderr=subprocess.PIPE, text=True)
    if probe.returncode and re.search(r'lib\S+\.so', probe.stderr):
        say('no libGL here: using the headless build of opencv')
        pip(
            'install',
            '--no-deps',
            '--force-reinstall',
            'opencv-python-headless==' + pinned('opencv-python'),
            failure='could not install opencv-python-headless',
        )


def fingerprint():
    """What the installed environment was made from."""
    digest = hashlib.sha256()
    for path in (CONSTRAINTS, os.path.join(ROOT, 'setup.py'), os.path.abspath(__file__)):
        with open(path, 'rb') as file:
            digest.update(file.read())
    return digest.hexdigest() + ' ' + ROOT


def is_installed():
    if not os.path.exists(STAMP) or not os.path.exists(PYTHON):
        return False
    with open(STAMP) as file:
        return file.read() == fingerprint()


def set_up():
    make_venv()
    remove_half_installed()
    say('installing torch {} and the build tools'.format(pinned('torch')))
    pip('install', '-c', CONSTRAINTS, *BASE, failure='could not install torch')
    cuda = cuda_of_torch()
    if compiled_mmcv(cuda) is None:
        build_mmcv(cuda)
    wheel = compiled_mmcv(cuda)
    say('installing mmcv (' + wheel + '), mmdet, mmsegmentation and what they need')
    # The wheel by its path: pip's own cache may hold one that was built without operators.
    pip(
        'install',
        '-c',
        CONSTRAINTS,
        '--no-build-isolation',
        *[wheel if name == 'mmcv' else name for name in STACK],
        failure='could not install OpenMMLab',
    )
    pip(
        'install',
        '--no-deps',
        '--no-build-isolation',
        '-e',
        '.',
        failure='could not install swinv2_backbone',
    )
    replace_opencv_without_libgl()
    run(
        [PYTHON, '-c', 'import mmdet, mmseg, mmcv.ops, swinv2_backbone'],
        'the installed stack cannot be imported',
    )
    with open(STAMP, 'w') as file:
        file.write(fingerprint())
    say('.venv is ready')


def set_up_implementations():
    """Install what the parity tests compare with; whole folders or nothing."""
    for name, packages in IMPLEMENTATIONS.items():
        folder = os.path.join(IMPLEMENTATIONS_FOLDER, name)
        pins = [package + '==' + pinned(package) for package in packages]
        stamp = os.path.join(folder, 'installed')
        if os.path.exists(stamp):
            with open(stamp) as file:
                if file.read() == ' '.join(pins):
                    continue
        say('installing, for parity tests: ' + ', '.join(pins))
        partial = folder + '.partial'
        for old in (folder, partial):
            shutil.rmtree(old, ignore_errors=True)
        # Alone: what else they need is in .venv, and must stay at the versions there.
        pip('install', '--no-deps', '--target', partial, *pins, failure='could not install ' + name)
        with open(os.path.join(partial, 'installed'), 'w') as file:
            file.write(' '.join(pins))
        os.rename(partial, folder)


def main(implementations=False):
    try:
        if is_installed() and not implementations:
            return
        signal.signal(signal.SIGTERM, lambda *_: sys.exit('ended; run again to go on'))
        if not is_installed():
            check_machine()
        take_lock()
        if not is_installed():
            set_up()
        if implementations:
            set_up_implementations()
    except SetupError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted; run again to go on')


if __name__ == '__main__':
    main(implementations='implementations' in sys.argv[1:])
