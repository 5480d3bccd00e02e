"""tools/analysis_tools/training_cost.py: the table, what is left out, mistakes."""

import json

import pytest

from tests.helpers.scripts import call, error_line
from tools.analysis_tools import training_cost
from tools.benchmarking.training import Training, measure


def test_tables(tmp_path, capsys, monkeypatch):
    ways = {name: training_cost.WAYS[name] for name in ('plain', '--optimizer fused')}
    monkeypatch.setattr(training_cost, 'WAYS', {**ways, 'broken': dict(with_cp=(True, False))})
    options = '--sizes', 64, '--rounds', 2, '--arch', 'mini', '--threads', 1
    call(training_cost.main, *options, '--out', tmp_path / 'new')
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '64x64, 2 images per update, window 8'
    assert lines[1].split() == ['peak', 'MB', 'x', 'plain', 'median', 's', 'x', 'plain']
    assert [line.split('  ')[0] for line in lines[2:4]] == list(ways)
    assert lines[4].startswith('- broken: ValueError: with_cp: got (True, False), 2 entries')
    written = json.loads((tmp_path / 'new/results.json').read_text())
    measured = written['results'][lines[0]]['plain']
    assert len(measured['seconds']) == 2
    assert (tmp_path / 'new/results.md').read_text().count('| plain |') == 1


@pytest.mark.parametrize('name', training_cost.WAYS)
def test_ways(name):
    changes = training_cost.WAYS[name]
    if changes.get('optimizer') == '8bit':
        pytest.importorskip('bitsandbytes')
    measured = measure(Training(48, 64, arch='mini', **changes), rounds=1)
    assert measured['bytes'] >= 0
    assert len(measured['seconds']) == 1


def test_mistakes_end_in_one_line(capsys):
    message = error_line(capsys, training_cost.main, '--batch', '3')
    assert '--batch: got 3, allowed: an even number' in message
