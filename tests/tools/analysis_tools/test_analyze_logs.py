"""tools/analysis_tools/analyze_logs.py: the table, the figure, mistakes."""

import pytest

from tests.helpers.scripts import call, error_line
from tests.tools.utils.test_curves import write
from tools.analysis_tools import analyze_logs


@pytest.fixture
def runs(tmp_path):
    write(tmp_path / 'a/work/20260101_000000', 2, 4, (4, 40.0), 6, 8, (8, 35.0))
    write(tmp_path / 'b/work/20260101_000000', 2, 4)
    return tmp_path / 'a/work', tmp_path / 'b/work'


def test_table(runs, tmp_path, capsys):
    out = tmp_path / 'new/compared.png'
    call(analyze_logs.main, *runs, '--out', out)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    head = 'run iterations s/iteration loss best at mIoU best at'
    assert lines[0] == head.split()
    assert lines[1] == f'{runs[0]} 8 2 0.125 0.125 8 35 40 4'.split()
    assert lines[2] == f'{runs[1]} 4 2 0.25 0.25 4 - - -'.split()
    assert lines[3] == ['->', str(out)]
    assert out.read_bytes().startswith(b'\x89PNG')
    call(analyze_logs.main, runs[0], runs[1].parent / 'work', '--keys', 'lr')
    assert 'mIoU' not in capsys.readouterr().out


def test_mistakes_end_in_one_line(runs, tmp_path, capsys):
    message = error_line(capsys, analyze_logs.main, *runs, '--keys', 'mIou')
    assert "no run has logged 'mIou' (did you mean 'mIoU'?)" in message
    message = error_line(capsys, analyze_logs.main, *runs, '--keys', 'xyz')
    assert 'allowed: loss, lr, time, iter, step, mIoU' in message
    message = error_line(capsys, analyze_logs.main, tmp_path / 'nowhere')
    assert 'no scalars.json of a training' in message
