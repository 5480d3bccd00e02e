"""The stacks that can be set up, each in an environment of its own, and running pip there.

Needs nothing but the standard library, and parses on older Pythons.
"""

import contextlib
import fcntl
import os
import re
import subprocess
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CONSTRAINTS = os.path.join(ROOT, 'constraints.txt')
CACHE = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
CACHE = os.path.join(CACHE, 'swinv2_backbone')
NETWORK_ERRORS = (
    'NewConnection|NameResolution|ConnectTimeout|ProxyError|SSLError|Connection refused'
)


class SetupError(Exception):
    """The set-up cannot go on; the message is the one line that the user sees."""


class Stack(NamedTuple):
    """OpenMMLab's packages, or a fork of them, and the environment that they are installed into.

    Args:
        venv: The folder of the environment.
        names: What the fork calls a distribution, by OpenMMLab's name for it.
        without_operators: The distribution of mmcv for which nothing is compiled.
        overrides: A file of pins that replace those of constraints.txt, or ''.
    """

    venv: str
    names: dict
    without_operators: str
    overrides: str

    @property
    def log(self):
        return os.path.join(self.venv, 'install.log')

    @property
    def stamp(self):
        """The file that records what the environment was made from, once it is complete."""
        return os.path.join(self.venv, 'installed')

    @property
    def python(self):
        return os.path.join(self.venv, 'bin', 'python')

    @property
    def constraints(self):
        """The file of pins for pip, which cannot read one file over the other."""
        return os.path.join(self.venv, 'constraints.txt') if self.overrides else CONSTRAINTS

    def pins(self):
        """The version of each distribution."""
        lines = (read(CONSTRAINTS) + read(self.overrides)).splitlines()
        return dict(line.split('==') for line in lines if line and not line.startswith('#'))

    def name(self, package):
        """What the distribution is called that OpenMMLab calls by this name."""
        return self.names.get(package, package)

    def pinned(self, package):
        """The version of a package."""
        return self.pins()[self.name(package)]

    def requirement(self, package):
        """A package as pip installs it."""
        return self.name(package) + '==' + self.pinned(package)

    def run(self, command, failure, env=None):
        """Run a command, its output in the log; if it fails, say why in one line."""
        with open(self.log, 'a+') as log:
            begin = log.tell()
            # The command inherits the lock: the next set-up waits even if this one is killed.
            options = dict(stdout=log, stderr=log, env=env, cwd=ROOT, close_fds=False)
            status = subprocess.call(command, **options)
            log.seek(begin)
            output = log.read()
        if status == 0:
            return
        if re.search(NETWORK_ERRORS, output):
            failure = 'no network: pip cannot reach a package index; connect or set PIP_INDEX_URL'
            raise SetupError(failure + ', and run again')
        errors = re.findall(r'error: +(.+)', output, re.IGNORECASE) or [f' status {status}']
        raise SetupError(f'{failure}: {errors[-1].strip()} (see {self.log})')

    def pip(self, *args, failure, env=None, python=None):
        """Run the environment's pip, or that of another Python."""
        quiet = ['--disable-pip-version-check', '--retries', '2']
        self.run([python or self.python, '-m', 'pip', *quiet, *args], failure, env)


_FORKED = 'mmengine', 'mmcv', 'mmsegmentation', 'mmpretrain'
STACKS = {
    'official': Stack(os.path.join(ROOT, '.venv'), {}, 'mmcv-lite', ''),
    # VBTI's forks, which are maintained. Their mmcv comes without operators where it is built in
    # isolation, as pip does by default.
    'onedl': Stack(
        os.path.join(ROOT, '.venv-onedl'),
        {
            **{name: 'onedl-' + name for name in _FORKED},
            'mmdet': 'onedl-mmdetection',
            'model-index': 'modelindex',
        },
        'onedl-mmcv',
        os.path.join(ROOT, 'constraints-onedl.txt'),
    ),
}


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
