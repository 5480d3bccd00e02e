"""Tables and files of a benchmark."""

import json
from importlib.util import find_spec
from pathlib import Path

from swinv2_backbone.checkpoints.files import atomic_file
from tools.benchmarking.cases import LABELS
from tools.utils.table import format_number, format_table, markdown_table

_HEAD = (
    'implementation',
    'median ms',
    'IQR ms',
    'min ms',
    'x fastest other',
    'of GEMM limit',
    'peak MB',
)


def rows(result: dict) -> list[tuple[str, ...]]:
    """The cells of a case's table, its head first; '-' where there is no number."""
    cells = [_HEAD]
    for name, measured in result['implementations'].items():
        times = (f'{1e3 * measured[key]:.2f}' for key in ('median', 'iqr', 'min'))
        limit = name == 'gemm'  # Its buffers are no activations.
        cells.append(
            (
                LABELS[name],
                *times,
                format_number(measured['speed'], '.2f'),
                '-' if limit else format_number(measured['limit_fraction'], '.0%'),
                '-' if limit else format_number(measured['bytes'] / 1e6, '.1f'),
            )
        )
    return cells


def notes(result: dict) -> list[str]:
    """What a case's table does not show, one line each."""
    lines = []
    ours = result['fastest_ours'] and LABELS[result['fastest_ours']]
    if result['speed_ratio'] is not None:
        lines.append(
            f'{ours} is {result["speed_ratio"]:.2f} times as fast as the fastest other '
            f'implementation, {LABELS[result["fastest_implementation"]]} '
            f"(median of the rounds' own ratios: {result['speed_ratio_by_round']:.2f})"
        )
    if result['memory_ratio'] is not None:
        lines.append(
            f'{ours} takes {result["memory_ratio"]:.2f} times the memory of the smallest other '
            f'implementation, {LABELS[result["smallest_implementation"]]}'
        )
    if result['multiply_adds'] is not None:
        lines.append(
            f'{result["multiply_adds"] / 1e9:.3f} G multiply-adds per step; its matrix products '
            f'alone run at {format_number(result["gemm_gflops"], ".1f")} GFLOP/s'
        )
    if result['trimmed']:
        lines.append('every implementation gave its memory back after each step')
    lines += [f'{LABELS[name]} is left out: {why}' for name, why in result['left_out'].items()]
    return lines


def text_table(result: dict) -> str:
    """A case for a terminal: name, aligned table, notes."""
    lines = [*format_table(rows(result)).splitlines(), *notes(result)]
    return '\n'.join([result['name'], *('  ' + line for line in lines)])


def header(machine: dict) -> list[str]:
    """Where and with what a benchmark ran, one line each."""
    lines = []
    for key, value in machine.items():
        if isinstance(value, dict):
            value = ', '.join(f'{name} {version}' for name, version in value.items() if version)
        elif isinstance(value, list):
            value = ', '.join(value) or 'none'
        lines.append(f'- {key.replace("_", " ")}: {value}')
    return lines


def case_section(result: dict) -> list[str]:
    """The lines of a case in Markdown: heading, table and notes."""
    lines = ['', f'## {result["name"]}', '', markdown_table(rows(result)), '']
    return lines + [f'- {note}' for note in notes(result)]


def markdown(results: dict) -> str:
    """All cases, under a header that says where and with what they ran."""
    lines = ['# Benchmark', '', *header(results['machine'])]
    for result in results['cases']:
        lines += case_section(result)
    return '\n'.join(lines) + '\n'


def write(results: dict, text: str, out: Path) -> None:
    """Write results.json, results.md (`text`) and chart.png, each atomically.

    Without matplotlib, or without a case, there is no chart.
    """
    texts = {'results.json': json.dumps(results, indent=1), 'results.md': text}
    for name, content in texts.items():
        with atomic_file(out / name) as partial:
            Path(partial).write_text(content)
    if results['cases'] and find_spec('matplotlib') is not None:
        from tools.benchmarking.chart import draw

        with atomic_file(out / 'chart.png') as partial:
            draw(results, Path(partial))
