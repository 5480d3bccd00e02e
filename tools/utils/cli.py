"""The command line of the tools: parsers, types of arguments, and how errors are shown."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import DictAction

from tools.utils.errors import UserError, did_you_mean, first_line, is_user_mistake

TRACEBACK_VARIABLE = 'SWINV2_TRACEBACK'

# Whether the first batch has begun. From then on exceptions keep their traceback.
running = False


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`, and end it with one line for a mistake of the user.

    Everything else keeps its traceback. After the first batch has begun, so does all but UserError.
    """
    global running
    running = False
    try:
        main()
    except KeyboardInterrupt:
        print(f'{Path(sys.argv[0]).name}: interrupted', file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        late = running and not isinstance(error, UserError)
        if late or os.environ.get(TRACEBACK_VARIABLE) or not is_user_mistake(error):
            raise
        hint = ''
        if not isinstance(error, UserError):
            hint = f' [{type(error).__name__}; {TRACEBACK_VARIABLE}=1 shows the traceback]'
        sys.exit(f'{Path(sys.argv[0]).name}: error: {first_line(error)}{hint}')


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose error message is one line, without the usage."""

    def error(self, message: str) -> None:
        option = message.removeprefix('unrecognized arguments: ').split()[0]
        if message.startswith('unrecognized'):
            hint = did_you_mean(option, self._option_string_actions)
            message = f"unknown option '{option}'{hint}"
        self.exit(2, f'{self.prog}: error: {message}; see --help\n')


class CfgOptions(DictAction):
    """`--cfg-options key=value ...`, checked to have that form."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            if '=' not in value:
                parser.error(f"--cfg-options: got '{value}', allowed: key=value")
        try:
            super().__call__(parser, namespace, values, option_string)
        except Exception as error:  # DictAction's parser of lists raises many classes.
            parser.error(f'--cfg-options: cannot be read: {first_line(error)}')


def make_parser(description: str) -> OneLineParser:
    """A parser with the arguments of every script that reads a config."""
    parser = OneLineParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir',
        help='where logs, checkpoints and results go (default: work_dirs/NAME_OF_THE_CONFIG)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. train_dataloader.batch_size=4',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed job are started',
    )
    # torch.distributed.launch passes it; torchrun sets the variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got '{text}', allowed: an integer of at least 1")
    return int(text)


def device(text: str) -> torch.device:
    """An argparse type: a device that torch can use here, as 'cpu' or 'cuda:1'."""
    try:
        return torch.empty(0, device=text).device
    except Exception as error:  # Each backend raises its own class.
        raise argparse.ArgumentTypeError(f"got '{text}': {first_line(error)}") from error


def file_type(*suffixes: str) -> Callable[[str], Path]:
    """An argparse type: the path of a file to write, with one of these suffixes."""

    def path(text: str) -> Path:
        if Path(text).suffix not in suffixes:
            allowed = ' or '.join(suffixes)
            raise argparse.ArgumentTypeError(f"got '{text}', allowed: a {allowed} file")
        return Path(text)

    return path


class Window(NamedTuple):
    """An attention window of a command line: its text, and what the backbone takes."""

    text: str
    size: int | tuple[int, int] | list[int | tuple[int, int]]


def window(text: str) -> Window:
    """An argparse type: '16', '8x16' (height x width), or '16,16,16,8' (one per stage)."""
    entry = '[1-9][0-9]*(x[1-9][0-9]*)?'
    if not re.fullmatch(f'{entry}(,{entry}){{3}}|{entry}', text):
        raise argparse.ArgumentTypeError(
            f"got '{text}', allowed: a side as 16, HEIGHTxWIDTH as 8x16, or one of these for each "
            'of the four stages as 16,16,16,8, in tokens'
        )
    sides = [[int(side) for side in entry.split('x')] for entry in text.split(',')]
    sizes = [each[0] if len(each) == 1 else tuple(each) for each in sides]
    return Window(text, sizes[0] if len(sizes) == 1 else sizes)
