"""results.md of a GPU report."""

from __future__ import annotations

from tools.benchmarking import report
from tools.utils.table import format_number, markdown_table


def markdown(results: dict) -> str:
    """The whole report: goals first, then what they rest on."""
    dry = ' (a dry run on a CPU: its numbers mean nothing)' * results['settings']['dry']
    lines = [f'# GPU report{dry}', '', *report.header(results['machine']), '']
    lines += [f'- {name}: {value}' for name, value in results['settings'].items()]
    if results['left_out']:
        lines += [f'- left out: {name} ({why})' for name, why in results['left_out'].items()]
    lines += ['', '## Goals', '', _GOAL_NOTE, '', markdown_table(_goal_rows(results['goals']))]
    for name, section in results['sections'].items():
        lines += ['', f'## {name.capitalize()}', '', *_SECTIONS[name](section)]
    for case in results['cases']:
        lines += report.case_section(case)
        lines += [f'- {name} waits for the device in a step: {what}'
                  for name, what in case['waits_for_device'].items()]  # fmt: skip
        lines += _spread_note(case)
    return '\n'.join(lines) + '\n'


_GOAL_NOTE = (
    'Ratios of medians, like with like: eager with eager; compiled, with or without a CUDA graph, '
    'with the same; with V1, eager with or without a CUDA graph.'
)


def _goal_rows(goals: list[dict]) -> list[tuple[str, ...]]:
    table = [('case', 'goal', 'wanted', 'measured', 'verdict')]
    for goal in goals:
        ratio = format_number(goal['ratio'], '.2f')
        table.append((goal['case'], goal['goal'], goal['wanted'], ratio, goal['verdict']))
    return table


def _spread_note(case: dict) -> list[str]:
    """How far the passes are apart: a difference smaller than that means nothing."""
    apart = [
        max(each['passes']) / min(each['passes']) - 1
        for each in case['implementations'].values()
        if len(each['passes']) > 1
    ]
    return [f'- medians of the passes differ by {max(apart):.1%} at most'] if apart else []


def _correctness(section: dict) -> list[str]:
    lines = [section['verdict'], '']
    checks = section.get('checks', [])
    if checks:
        lines.append(markdown_table(_worst_rows(checks)))
    return lines + _errors(section)


def _worst_rows(checks: list[dict]) -> list[tuple[str, ...]]:
    """One row per kind of check: the one closest to its bound, or beyond it."""
    table = [('check', 'number', 'failed', 'largest error', 'its bound', 'where')]
    for kind in dict.fromkeys(check['check'] for check in checks):
        same = [check for check in checks if check['check'] == kind]
        worst = max(same, key=lambda check: (not check['passed'], check['error'] / check['bound']))
        failed = sum(not check['passed'] for check in same)
        numbers = (f'{worst[key]:.1e}' for key in ('error', 'bound'))
        table.append((kind, str(len(same)), str(failed), *numbers, worst['where']))
    return table


def _sanitized(section: dict) -> list[str]:
    lines = [section['verdict']]
    if section.get('output'):
        lines += ['', '```', *section['output'], '```']
    return lines + _errors(section)


def _tiles(section: dict) -> list[str]:
    lines = [section['verdict'], '']
    tried = section.get('tried', [])
    if tried:
        head = ('what', 'for', 'configuration', 'ms', 'of the package')
        rows = [
            (
                each['kernel'],
                each['where'],
                each['configuration'],
                format_number(each['seconds'] and 1e3 * each['seconds'], '.3f'),
                each['note'],
            )
            for each in tried
        ]
        lines.append(markdown_table([head, *rows]))
    return lines + _errors(section)


def _profile(section: dict) -> list[str]:
    if 'table' not in section:
        return [section['verdict']]
    flops, copied = (section['ceilings'][key] for key in ('bf16_flops', 'copy_bytes'))
    return [
        f'A large product in bf16 reaches {flops / 1e12:.0f} TFLOP/s, a large copy '
        f'{copied / 1e12:.2f} TB/s.',
        '',
        '```',
        *section['table'].splitlines(),
        '```',
    ]


def _errors(section: dict) -> list[str]:
    return (
        ['', '```', *section['errors'].splitlines()[-10:], '```'] if section.get('errors') else []
    )


_SECTIONS = {
    'correctness': _correctness,
    'sanitizer': _sanitized,
    'tiles': _tiles,
    'profile': _profile,
}
