"""`python -m swinv2_backbone`: the table of published checkpoints."""

import argparse

from .checkpoints.pretrained_windows import as_setting
from .checkpoints.releases import RELEASES, SCHEME


def format_table() -> str:
    """One line a release."""
    head = (
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
    rows = [head] + [
        tuple(
            '-' if cell is None else str(cell)
            for cell in (
                r.name,
                r.format,
                r.arch,
                r.image_size,
                as_setting(r.windows),
                r.megabytes,
                r.top1,
                r.top5,
                r.url,
                r.source,
            )
        )
        for r in RELEASES.values()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(
        prog='python -m swinv2_backbone',
        description=f'Published SwinV2 checkpoints. Give one to init_cfg as {SCHEME}NAME.',
    ).parse_args()
    print(format_table())


if __name__ == '__main__':
    main()
