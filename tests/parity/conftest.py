"""What the parity tests measured, shown at the end of the run."""

import pytest

from .comparison import measured


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    """Attach the measurements of a test to its report, which pytest-xdist brings to the parent."""
    measured.clear()
    yield
    item.user_properties += [('measured', line) for line in measured]


def pytest_terminal_summary(terminalreporter):
    reports = [*terminalreporter.getreports('passed'), *terminalreporter.getreports('failed')]
    lines = [
        line for report in reports for name, line in report.user_properties if name == 'measured'
    ]
    if lines:
        terminalreporter.section('measured')
    for line in lines:
        terminalreporter.write_line(line)
