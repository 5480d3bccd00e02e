"""Tests of Triton kernels on CPU tensors, in Triton's interpreter.

An interpreted kernel cannot be compiled, and ``TRITON_INTERPRET`` must be set before the first
kernel is defined: such tests run in a process of their own. Their module has two lines for it::

    pytestmark = interpreted  # or on single tests

    test_in_the_interpreter = run_in_the_interpreter(__file__)
"""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

INTERPRETING = os.environ.get('TRITON_INTERPRET') == '1'
HAS_TRITON = importlib.util.find_spec('triton') is not None

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason='needs Triton')
interpreted = pytest.mark.skipif(
    not (INTERPRETING and HAS_TRITON), reason="runs in Triton's interpreter, in its own process"
)


def run_in_the_interpreter(path, *options):
    """A test that runs the ``interpreted`` tests of a module, all of which must pass."""

    @needs_triton
    @pytest.mark.skipif(INTERPRETING, reason='is what runs the others')
    def test():
        command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', path, *options]
        env = {**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        assert int(re.search(r'(\d+) passed', done.stdout)[1]) > 0, done.stdout[-2000:]

    return test
