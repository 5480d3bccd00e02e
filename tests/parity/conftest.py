"""The measurements of the parity tests, shown at the end of the run."""

from .comparison import measured


def pytest_terminal_summary(terminalreporter):
    if measured:
        terminalreporter.section('measured')
        for line in measured:
            terminalreporter.write_line(line)
