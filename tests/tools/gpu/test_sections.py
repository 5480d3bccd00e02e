"""The processes of the sections: what they wrote counts, however they end."""

import sys

from tools.gpu import report_text, sections
from tools.gpu.sections import SectionError, attempt


def test_lines_of_a_process_that_is_ended_count():
    code = 'import time; print(\'{"a": 1}\'); print("no record"); time.sleep(600)'
    for seconds in (2.0, 20.0, 60.0):  # A busy machine may need long to start a process.
        status, lines, _ = sections._run([sys.executable, '-c', code], seconds)
        if lines:
            break
    assert status is None
    assert sections._records(lines) == [{'a': 1}]


def test_end_of_the_errors_is_kept():
    code = 'import sys; print("x" * 9000 + "the reason", file=sys.stderr); sys.exit(3)'
    status, lines, errors = sections._run([sys.executable, '-c', code], 60)
    assert (status, lines) == (3, [])
    assert errors.strip().endswith('the reason')
    assert len(errors) == sections._TAIL


def test_section_that_cannot_be_done_says_why(capsys):
    def section(args, at_most):
        raise SectionError('compute-sanitizer is not installed')

    found = attempt('sanitizer', section, None, 10)
    assert found == {'verdict': 'left out: compute-sanitizer is not installed'}
    assert report_text._SECTIONS['sanitizer'](found) == [found['verdict']]
    assert report_text._SECTIONS['profile'](found) == [found['verdict']]


def test_worst_check_of_each_kind_is_shown():
    checks = [
        dict(check='output', where='first', error=1e-3, bound=2e-3, passed=True),
        dict(check='output', where='second', error=3e-3, bound=9e-3, passed=True),
        dict(check='gradient', where='third', error=1e-3, bound=2e-3, passed=True),
        dict(check='gradient', where='fourth', error=1e30, bound=2e-3, passed=False),
    ]
    head, *rows = report_text._worst_rows(checks)
    assert len(head) == 6
    assert rows == [
        ('output', '2', '0', '1.0e-03', '2.0e-03', 'first'),
        ('gradient', '2', '1', '1.0e+30', '2.0e-03', 'fourth'),
    ]


def test_difference_between_passes_is_shown():
    case = dict(implementations={'a': dict(passes=[1.0, 1.1]), 'b': dict(passes=[2.0, 2.0])})
    assert report_text._spread_note(case) == ['- medians of the passes differ by 10.0% at most']
    assert report_text._spread_note(dict(implementations={})) == []
