"""Tables of text."""

from collections.abc import Sequence


def format_number(value: float | None, spec: str) -> str:
    """A number in a format, or '-' if there is none."""
    return '-' if value is None else format(value, spec)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the header first, as aligned lines.

    The first column is flush left, the others, which hold numbers, are flush right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]).rstrip()
        for first, *others in rows
    )
