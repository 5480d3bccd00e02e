"""The benchmark's command line."""

import argparse
from pathlib import Path

import torch

from tools.benchmarking.cases import ARCHITECTURES, DTYPES, IMPLEMENTATIONS, MODES, Case
from tools.utils.cli import OneLineParser, positive
from tools.utils.config_checks import UserError


def parse_size(text: str) -> tuple[int, int]:
    """An argparse type: '512' or '800x1344' to (height, width) in pixels."""
    sides = text.split('x')
    if len(sides) > 2 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(
            f"got '{text}', allowed: a side as 512, or HEIGHTxWIDTH as 800x1344, in pixels"
        )
    return int(sides[0]), int(sides[-1])


def parse_case(text: str) -> tuple[str, tuple[int, int], int, int]:
    """An argparse type: 'train:800x1344:16:2' to (mode, (height, width), window, batch)."""
    try:
        mode, size, window, batch = text.split(':')
        if mode in MODES:
            return mode, parse_size(size), positive(window), positive(batch)
    except (ValueError, argparse.ArgumentTypeError):
        pass
    raise argparse.ArgumentTypeError(
        f"got '{text}', allowed: MODE:SIZE:WINDOW:BATCH, as infer:512:8:1 or train:800x1344:16:2 "
        f'(modes: {", ".join(MODES)})'
    )


def cases_of(args: argparse.Namespace) -> list[Case]:
    """The cases that a command line asks for, each once, in its order."""
    wanted = args.cases or [
        (mode, size, window, args.batch)
        for mode in args.modes
        for size in args.sizes
        for window in args.windows
    ]
    return list(
        dict.fromkeys(
            Case(mode, *size, window, batch, dtype)
            for dtype in args.dtype
            for mode, size, window, batch in wanted
        )
    )


def probability(text: str) -> float:
    """An argparse type: a number from 0 up to, not including, 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"got '{text}', allowed: a number from 0 to below 1")
    return value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked.

    Raises:
        UserError: If the device is not there.
    """
    parser = OneLineParser(
        description='Time this backbone against other implementations, one '
        'after the other in every round, and against its matrix products.'
    )
    add = parser.add_argument
    add(
        '--sizes',
        nargs='+',
        type=parse_size,
        default=[(512, 512)],
        metavar='SIZE',
        help='images in pixels: 512, or HEIGHTxWIDTH',
    )
    add('--windows', nargs='+', type=positive, default=[8, 16], help='attention windows in tokens')
    add(
        '--modes',
        '--mode',
        nargs='+',
        choices=MODES,
        default=['infer'],
        help='infer: a forward; train: a forward and a backward',
    )
    add('--batch', type=positive, default=1, help='images a step')
    add(
        '--cases',
        nargs='+',
        type=parse_case,
        metavar='MODE:SIZE:WINDOW:BATCH',
        help='these cases, instead of all of --sizes, --windows, --modes and --batch',
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
        help='whom to compare with; swin_v1 is the V1 network, not an implementation of V2',
    )
    add('--plain', action='store_true', help='also ours with SWINV2_ATTENTION=plain')
    add(
        '--windows-at-once',
        type=positive,
        metavar='N',
        help='also ours with N windows in flight at a time',
    )
    add('--device', choices=['cpu', 'cuda'], default='cpu')
    add('--compile', action='store_true', help='torch.compile every implementation')
    add('--rounds', type=positive, default=10, help='timed steps of each implementation')
    add('--warm-up', type=positive, default=1, help='rounds before them that are not timed')
    add('--threads', type=positive, default=torch.get_num_threads(), help='of the CPU')
    add('--drop-path', type=probability, default=0.2, help='drop path rate in train mode')
    add(
        '--arch',
        choices=sorted(ARCHITECTURES, reverse=True),
        default='tiny',
        help='mini is no model, but quick: for trying this tool',
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
        help='where `make .venv/implementations` installs; without it, implementations are looked for as usual',
    )
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError("--device: got 'cuda', allowed: cpu (torch sees no CUDA device here)")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out: got '{args.out}', a file; allowed: a folder, or a new name")
    return args
