"""The benchmark's command line."""

import argparse
from pathlib import Path

import torch

from tools.benchmarking.cases import ARCHITECTURES, DTYPES, MODES, Case
from tools.benchmarking.implementations import IMPLEMENTATIONS
from tools.utils.cli import OneLineParser, UserError, positive


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
    """The cases of a command line, each once, in its order."""
    requested = args.cases or [
        (mode, size, window, args.batch)
        for mode in args.modes
        for size in args.sizes
        for window in args.windows
    ]
    return list(
        dict.fromkeys(
            Case(mode, *size, window, batch, dtype)
            for dtype in args.dtype
            for mode, size, window, batch in requested
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


def _add_case_options(parser: argparse.ArgumentParser) -> None:
    """What is measured."""
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
    add('--batch', type=positive, default=1, help='images per step')
    add(
        '--cases',
        nargs='+',
        type=parse_case,
        metavar='MODE:SIZE:WINDOW:BATCH',
        help='these cases, instead of all combinations of --sizes, --windows, --modes and --batch',
    )
    add(
        '--dtype',
        nargs='+',
        choices=DTYPES,
        default=['fp32'],
        help='bf16 and fp16 are autocast, with float32 weights; bf16_weights is autocast with '
        'the weights of linear layers cast beforehand; int8 is by torchao, dynamic',
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """What it is compared with, and how it is measured."""
    add = parser.add_argument
    add(
        '--implementations',
        '--peers',
        nargs='*',
        choices=IMPLEMENTATIONS,
        default=list(IMPLEMENTATIONS),
        help='implementations to compare with; swin_v1 is Swin V1, another network',
    )
    add('--reference', action='store_true', help='also ours with SWINV2_ATTENTION=reference')
    add('--windows-at-once', type=positive, metavar='N', help='also ours with windows_at_once=N')
    add(
        '--half-backward',
        action='store_true',
        help='also ours with the backward of the attention by products in half precision on a CPU '
        '(with --dtype bf16), as on GPUs; its gradients are not accurate there',
    )
    add(
        '--without-onednn',
        action='store_true',
        help="also ours with torch's own linear layers in float32 inference on a CPU",
    )
    add('--device', choices=['cpu', 'cuda'], default='cpu')
    add('--compile', action='store_true', help='torch.compile every implementation')
    add('--rounds', type=positive, default=10, help='timed steps of each implementation')
    add('--warm-up', type=positive, default=1, help='rounds before those that are timed')
    add('--threads', type=positive, default=torch.get_num_threads(), help='of the CPU')
    add('--drop-path', type=probability, default=0.2, help='drop path rate in train mode')
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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line.

    Raises:
        UserError: If torch cannot use the device, or --out is a file.
    """
    parser = OneLineParser(
        description='Time this backbone against other implementations, one after the other in '
        'every round, and against the time of its matrix products alone.'
    )
    _add_case_options(parser)
    _add_run_options(parser)
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError("--device: got 'cuda', allowed: cpu (torch sees no CUDA device here)")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out: got '{args.out}', a file; allowed: a folder, or a new name")
    return args
