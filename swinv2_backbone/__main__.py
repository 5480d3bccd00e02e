"""`python -m swinv2_backbone`: the table of published checkpoints, and the tools by name."""

import argparse
import os
import runpy
import sys
from pathlib import Path

from .checkpoints.pretrained_windows import format_pretrained_windows
from .checkpoints.releases import RELEASES, SCHEME

# Scripts, relative to the folder of the tools.
COMMANDS = {
    'train': 'train.py',
    'test': 'test.py',
    'predict': 'predict.py',
    'app': 'app.py',
    'convert': 'model_converters/convert_checkpoint.py',
    'export': 'deployment/export.py',
    'check-data': 'misc/check_dataset.py',
    'demo': 'demo.py',
}


def format_table() -> str:
    """The releases as text, one per line, below a line of column names."""
    releases = [
        {
            **vars(release),
            'pretrained_window_sizes': format_pretrained_windows(release.pretrained_window_sizes),
        }
        for release in RELEASES.values()
    ]
    cells = [['-' if c is None else str(c) for c in each.values()] for each in releases]
    rows = [list(releases[0]), *cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join('  '.join(map(str.ljust, row, widths)).rstrip() for row in rows)


def tools_folder() -> Path:
    """The folder of the tools: in the package where a wheel is installed, beside it in a clone."""
    package = Path(__file__).resolve().parent
    installed = package / '.mim' / 'tools'
    return installed if installed.is_dir() else package.parent / 'tools'


def main() -> None:
    """Print the table, or run a tool with the rest of the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m swinv2_backbone',
        description='Without a command: the published SwinV2 checkpoints. Load one with init_cfg, '
        f'as {SCHEME}NAME. A command has its own --help.',
    )
    parser.add_argument('command', nargs='?', choices=COMMANDS)
    command = parser.parse_args(sys.argv[1:2]).command
    if command is None:
        try:
            print(format_table(), flush=True)
        except BrokenPipeError:  # As of `| head`. At its end Python would flush again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    script = str(tools_folder() / COMMANDS[command])
    sys.argv = [script, *sys.argv[2:]]
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
