"""The sections of a GPU report, but for the timings: each returns what results.json holds of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys

from tools.benchmarking.measurement import say
from tools.benchmarking.process import ROOT, WorkerError
from tools.gpu.timings import Settings

# Random cases of the attention: in the report itself, and under the sanitizer, where they are slow.
_CHECKS, _SANITIZED_CHECKS, _DRY_CHECKS = 60, 4, 3
_CEILINGS = dict(side=8192, megabytes=1024)
_DRY_CEILINGS = dict(side=64, megabytes=1)
_TAIL = 2000


class SectionError(Exception):
    """A section could not be done; the message is the reason, on one line."""


def _run(command: list[str], at_most: float, **variables: str) -> tuple[int | None, list[str], str]:
    """Run a process: its status (None: it took too long), its lines, the end of its errors.

    Lines that it had written before its end count in any case.
    """
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, 'PYTHONUNBUFFERED': '1', **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, errors = process.communicate(timeout=max(1.0, at_most))
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
            return None, out.splitlines(), errors[-_TAIL:]
    return process.returncode, out.splitlines(), errors[-_TAIL:]


def _records(lines: list[str]) -> list[dict]:
    """Those lines that are records of JSON; libraries may print others."""
    return [json.loads(line) for line in lines if line.startswith('{')]


def _module(name: str, args: argparse.Namespace, *more: str) -> list[str]:
    dry = ['--dry'] if args.dry else []
    return [sys.executable, '-m', f'tools.gpu.{name}', '--device', args.device, *dry, *more]


def _variables(args: argparse.Namespace) -> dict[str, str]:
    """In a dry run, Triton's kernels run in its interpreter."""
    if not args.dry:
        return {}
    return {'TRITON_INTERPRET': '1', 'SWINV2_ATTENTION': 'triton'}


def correctness(args: argparse.Namespace, at_most: float) -> dict:
    """Compare the attention, and the whole network, with float64."""
    count = _DRY_CHECKS if args.dry else _CHECKS
    command = _module('correctness', args, '--cases', str(count))
    status, lines, errors = _run(command, at_most, **_variables(args))
    checks = _records(lines)
    failed = [check for check in checks if not check['passed']]
    verdict = 'passed' if status == 0 and checks and not failed else 'failed'
    if status is None:
        verdict = 'took too long'
    return dict(verdict=verdict, checks=checks, errors=errors if status else '')


def sanitized(args: argparse.Namespace, at_most: float) -> dict:
    """Run a few checks under compute-sanitizer, which finds accesses outside of allocations.

    Raises:
        SectionError: If it is not installed.
    """
    program = shutil.which('compute-sanitizer') or '/usr/local/cuda/bin/compute-sanitizer'
    prefix = [program, '--tool', 'memcheck', '--error-exitcode', '9']
    if args.dry:
        prefix = []
    elif not os.path.exists(program):
        raise SectionError('compute-sanitizer is not installed')
    count = str(_DRY_CHECKS if args.dry else _SANITIZED_CHECKS)
    command = [*prefix, *_module('correctness', args, '--cases', count, '--no-network')]
    # Each tensor an allocation of its own, or an access beyond one meets the next.
    single = {'PYTORCH_NO_CUDA_MEMORY_CACHING': '1'}
    status, lines, errors = _run(command, at_most, **single, **_variables(args))
    verdict = {0: 'no error', 9: 'errors', None: 'took too long'}.get(status, 'failed')
    last = [line for line in lines if line.startswith('=========')][-20:]
    return dict(verdict=verdict, checks=len(_records(lines)), output=last, errors=errors)


def tiles(args: argparse.Namespace, at_most: float) -> dict:
    """Time the kernels of the attention with other tiles than those of the package."""
    # It ends by itself before it would be ended.
    command = _module('tiles', args, '--seconds', str(0.8 * at_most))
    status, lines, errors = _run(command, at_most, **_variables(args))
    verdict = {0: 'complete', None: 'took too long'}.get(status, 'failed')
    return dict(verdict=verdict, tried=_records(lines), errors=errors if status else '')


def profile(args: argparse.Namespace, at_most: float) -> dict:
    """Profile a step of the first case, and measure what the device reaches at best.

    Raises:
        SectionError: If the network cannot run.
    """
    settings = Settings(args)
    case = settings.cases[0]
    worker = settings.start('ours')
    try:
        settings.build(worker, 'ours', case, False, at_most)
        table = worker.request('profile', timeout=max(1.0, at_most))['table']
        sizes = _DRY_CEILINGS if args.dry else _CEILINGS
        found = worker.request('ceilings', timeout=max(1.0, at_most), **sizes)
    except WorkerError as error:
        raise SectionError(str(error)) from error
    finally:
        worker.close()
    return dict(case=dataclasses.asdict(case), table=table, ceilings=found)


def attempt(name: str, section, args: argparse.Namespace, at_most: float) -> dict:
    """A section's result, or why there is none."""
    say(f'{name}, at most {at_most:.0f} s')
    try:
        return section(args, at_most)
    except SectionError as error:
        return dict(verdict=f'left out: {error}')
