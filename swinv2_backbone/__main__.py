"""`python -m swinv2_backbone`: the table of published checkpoints."""

import argparse

from .checkpoints.pretrained_windows import format_pretrained_windows
from .checkpoints.releases import RELEASES, SCHEME

_COLUMNS = (
    'name',
    'format',
    'arch',
    'image',
    'pretrained_window_sizes',
    'MB',
    'top-1',
    'top-5',
    'url',
    'source of the numbers',
)


def format_table() -> str:
    """The releases as text, one per line, below a line of column names."""
    cells = [
        (
            release.name,
            release.format,
            release.arch,
            release.image_size,
            format_pretrained_windows(release.pretrained_window_sizes),
            release.megabytes,
            release.top1,
            release.top5,
            release.url,
            release.source,
        )
        for release in RELEASES.values()
    ]
    rows = [_COLUMNS, *(tuple('-' if c is None else str(c) for c in row) for row in cells)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ('  '.join(map(str.ljust, row, widths)) for row in rows)
    return '\n'.join(line.rstrip() for line in lines)


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(
        prog='python -m swinv2_backbone',
        description=f'Published SwinV2 checkpoints. Load one with init_cfg, as {SCHEME}NAME.',
    ).parse_args()
    print(format_table())


if __name__ == '__main__':
    main()
