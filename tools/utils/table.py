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


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the header first, as a table in Markdown; all columns but the first are flush
    right.
    """
    head, *body = (f'| {" | ".join(row)} |' for row in rows)
    return '\n'.join([head, '|---' + '|---:' * (len(rows[0]) - 1) + '|', *body])
