"""The parent's side of a worker process."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.benchmarking.implementations import IMPLEMENTATIONS

ROOT = Path(__file__).resolve().parents[2]
_ATTENTION = {'ours_reference': 'reference', 'gemm': 'reference', 'ours_sdpa': 'sdpa'}


class WorkerError(Exception):
    """An implementation cannot go on; the message is the reason, on one line."""


class Worker:
    """A process of its own for one implementation and one case: peak memory is a process's.

    Between requests it waits on its pipe, and takes no CPU time.

    Args:
        implementations_folder: Where the folders of the other implementations are; one that does
            not exist is left out of the path.
    """

    def __init__(self, implementation: str, implementations_folder: Path, threads: int):
        self._errors = tempfile.TemporaryFile('w+')  # noqa: SIM115 (closed in `close`)
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'tools.benchmarking.worker'],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(implementation, implementations_folder, threads),
        )

    def request(self, do: str, timeout: float | None = None, **arguments: object) -> dict:
        """Send a request and wait for its answer; see ``worker.py``.

        Raises:
            WorkerError: If the implementation fails, its process has ended, or it gives no answer
                for `timeout` seconds; it must be closed then.
        """
        try:
            self._process.stdin.write(json.dumps({'do': do, **arguments}) + '\n')
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], timeout)[0]:
                raise WorkerError(f'no answer within {timeout:.0f} s')
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ''
        if not line:
            raise WorkerError(self._why_it_ended())
        answer = json.loads(line)
        if 'error' in answer:
            raise WorkerError(answer['error'])
        return answer

    def _why_it_ended(self) -> str:
        status = self._process.wait()
        text = f'its process ended with status {status}'
        if status < 0:
            text = f'its process was ended by {signal.Signals(-status).name}'
            if -status == signal.SIGKILL:
                text += ' (out of memory?)'
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return text + (f': {lines[-1]}' if lines else '')

    def kill(self) -> None:
        """End the process, from any thread: a request that waits for it fails."""
        self._process.kill()

    def close(self) -> None:
        """End the process; it is no error if it has ended."""
        self.kill()
        self._process.communicate()
        self._errors.close()


def environment(implementation: str, implementations_folder: Path, threads: int) -> dict[str, str]:
    """The environment variables of an implementation's process."""
    paths = [str(ROOT)]
    if implementation in IMPLEMENTATIONS:
        folder = (implementations_folder / IMPLEMENTATIONS[implementation].folder).resolve()
        paths += [str(folder)] if folder.is_dir() else []
    paths += [path for path in [os.environ.get('PYTHONPATH')] if path]
    variables = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(paths),
        'OMP_NUM_THREADS': str(threads),
        'MKL_NUM_THREADS': str(threads),
    }
    if implementation in _ATTENTION:
        variables['SWINV2_ATTENTION'] = _ATTENTION[implementation]
    return variables
