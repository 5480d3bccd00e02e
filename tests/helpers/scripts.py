"""Calling the scripts of tools/ in this process, or in a process of their own."""

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmengine.runner import checkpoint
from mmengine.utils import ManagerMixin

from tools.utils import cli

ROOT = Path(__file__).parents[2]


def call(main: Callable[[], None], *args: object) -> None:
    """Run a script's `main` in this process, as from the command line, and undo its side effects.

    Raises:
        SystemExit: If it ends with an error message.
    """
    argv = [f'{main.__module__}.py', *map(str, args)]
    with mock.patch.object(sys, 'argv', argv), isolated():
        cli.run(main)


@contextmanager
def isolated() -> Iterator[None]:
    """Undo what a run of mmengine changes globally."""
    with mock.patch.dict(os.environ), safe_globals_restored():
        try:
            yield
        finally:
            _forget_instances(ManagerMixin)


def error_line(capsys: pytest.CaptureFixture, main: Callable[[], None], *args: object) -> str:
    """The message with which a script ends, checked to be a single line."""
    with pytest.raises(SystemExit) as ended:
        call(main, *args)
    code = ended.value.code  # argparse has written its message already.
    message = code if isinstance(code, str) else capsys.readouterr().err
    assert message.strip().count('\n') == 0, message
    return message


def start(script: str, *args: object, variables: dict | None = None, **kwargs) -> subprocess.Popen:
    """Start a script in a process of its own. Its output is piped.

    Args:
        variables: Of its environment.
    """
    return subprocess.Popen(
        [sys.executable, ROOT / script, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **(variables or {})},
        **kwargs,
    )


def succeed(script: str, *args: object, **kwargs) -> str:
    """The output of a script in a process of its own, which must succeed."""
    return output_of(start(script, *args, **kwargs))


def free_port() -> int:
    """A port below those that the system gives to connections, which may take it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(10000, 29000)
        with suppress(OSError), socket.create_server(('127.0.0.1', port)):
            return port


def start_shell(
    script: str, *args: object, prefix: Sequence[str] = (), **variables: object
) -> subprocess.Popen:
    """Start a shell script with this Python as `python`, on CPUs.

    Args:
        prefix: A command that runs it.
        variables: Of its environment.
    """
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    defaults = dict(OMP_NUM_THREADS=1, CUDA_VISIBLE_DEVICES=-1, PATH=path)
    return subprocess.Popen(
        [*prefix, 'bash', ROOT / script, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {key: str(value) for key, value in (defaults | variables).items()},
    )


def output_of(process: subprocess.Popen) -> str:
    """The output of a process, which must succeed."""
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-3000:]
    return output


@contextmanager
def safe_globals_restored() -> Iterator[None]:
    """Undo what compat.allow_mmengine_checkpoints allows torch's loader."""
    before = torch.serialization.get_safe_globals()
    of_the_forks = getattr(checkpoint, 'get_torch_safe_globals', None)
    try:
        yield
    finally:
        if of_the_forks:
            checkpoint.get_torch_safe_globals = of_the_forks
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _forget_instances(cls: type) -> None:
    """Forget mmengine's global loggers, visualizers and so on, which a next Runner would reuse."""
    cls._instance_dict.clear()
    for subclass in cls.__subclasses__():
        _forget_instances(subclass)
