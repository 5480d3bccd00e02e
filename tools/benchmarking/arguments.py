"""The benchmark's command line."""

import argparse
import dataclasses
import re
from pathlib import Path

import torch

from tools.benchmarking.cases import ARCHITECTURES, DTYPES, MODES, Case
from tools.benchmarking.implementations import IMPLEMENTATIONS
from tools.utils.cli import OneLineParser, UserError, positive

_CASE = 'MODE:SIZE:WINDOW:BATCH'
_NUMBER = '([1-9][0-9]*)'


def parse_case(text: str) -> Case:
    """An argparse type: 'infer:512:8:1', or 'train:800x1344:16:2' (height x width)."""
    modes = '|'.join(MODES)
    found = re.fullmatch(f'({modes}):{_NUMBER}(?:x{_NUMBER})?:{_NUMBER}:{_NUMBER}', text)
    if not found:
        raise argparse.ArgumentTypeError(
            f"got '{text}', allowed: {_CASE}, as infer:512:8:1 or train:800x1344:16:2 "
            f'(modes: {", ".join(MODES)})'
        )
    mode, height, width, window, batch = found.groups()
    return Case(mode, int(height), int(width or height), int(window), int(batch))


def cases_of(args: argparse.Namespace) -> list[Case]:
    """The cases of a command line, each once, in its order."""
    cases = [dataclasses.replace(case, dtype=dtype) for dtype in args.dtype for case in args.cases]
    return list(dict.fromkeys(cases))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line.

    Raises:
        UserError: If torch cannot use the device, or --out is a file.
    """
    parser = OneLineParser(
        description='Time this backbone against other implementations, one after the other in '
        'every round, and against the time of its matrix products alone.'
    )
    add = parser.add_argument
    add(
        '--cases',
        nargs='+',
        type=parse_case,
        default=[parse_case('infer:512:8:1'), parse_case('infer:512:16:1')],
        metavar=_CASE,
        help='infer: a forward, or train: a forward and a backward; side of the images in pixels, '
        'or HEIGHTxWIDTH; side of the attention window in tokens; images per step',
    )
    add(
        '--dtype',
        nargs='+',
        choices=DTYPES,
        default=['fp32'],
        help='bf16 and fp16 are autocast, with float32 weights',
    )
    add(
        '--implementations',
        nargs='*',
        choices=IMPLEMENTATIONS,
        default=list(IMPLEMENTATIONS),
        help='implementations to compare with; swin_v1 is Swin V1, another network',
    )
    add('--reference', action='store_true', help='also ours with SWINV2_ATTENTION=reference')
    add('--windows-at-once', type=positive, metavar='N', help='also ours with windows_at_once=N')
    add('--device', choices=['cpu', 'cuda'], default='cpu')
    add('--compile', action='store_true', help='torch.compile every implementation')
    add('--rounds', type=positive, default=10, help='timed steps of each implementation')
    add('--threads', type=positive, default=torch.get_num_threads(), help='of the CPU')
    add(
        '--arch',
        choices=sorted(ARCHITECTURES, reverse=True),
        default='tiny',
        help='mini is no released model: for trying this tool in seconds',
    )
    add(
        '--out',
        type=Path,
        default=Path('work_dirs/benchmark'),
        help='folder of results.json, results.md and chart.png',
    )
    add(
        '--implementations-folder',
        type=Path,
        default=Path(__file__).parents[2] / '.venv/implementations',
        help='where `make .venv/implementations` installs them; a library that is not there is '
        'imported from this environment',
    )
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError("--device: got 'cuda', allowed: cpu (torch sees no CUDA device here)")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out: got '{args.out}', a file; allowed: a folder, or a new name")
    return args
