"""`python -m swinv2_backbone`: the table of published checkpoints."""

import argparse

from .checkpoints.pretrained_windows import format_pretrained_windows
from .checkpoints.releases import RELEASES, SCHEME


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


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(
        prog='python -m swinv2_backbone',
        description=f'Published SwinV2 checkpoints. Load one with init_cfg, as {SCHEME}NAME.',
    ).parse_args()
    print(format_table())


if __name__ == '__main__':
    main()
