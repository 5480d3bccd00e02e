"""The GPU report, from end to end on a CPU, with tiny sizes."""

import json
import subprocess
import sys

import pytest

from tests.helpers.scripts import ROOT, error_line
from tools.analysis_tools import gpu_report
from tools.gpu.timings import DRY_CASES
from tools.utils.errors import UserError

SCRIPT = ROOT / 'tools/analysis_tools/gpu_report.py'


def test_without_a_gpu_the_command_for_one_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(gpu_report.torch.cuda, 'is_available', lambda: False)
    line = error_line(capsys, gpu_report.main)
    assert gpu_report.COMMAND in line
    assert 'make gpu-wheels' in line


@pytest.mark.parametrize('options', [['--dry'], ['--device', 'cpu']])
def test_dry_runs_are_on_a_cpu_and_only_these(options):
    with pytest.raises(UserError, match='--dry: allowed with --device cpu'):
        gpu_report.parse_args(options)


@pytest.fixture(scope='module')
def dry_run(tmp_path_factory):
    """The results of a dry run, and their folder."""
    pytest.importorskip('triton')
    out = tmp_path_factory.mktemp('report')
    command = [sys.executable, SCRIPT, '--device', 'cpu', '--dry', '--threads', '1', '--out', out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / 'results.json').read_text()), out


@pytest.mark.slow
def test_every_section_has_its_results(dry_run):
    results, _ = dry_run
    assert results['left_out'] == {}
    sections = results['sections']
    assert sections['correctness']['verdict'] == 'passed', sections['correctness']
    kinds = {check['check'].split(',')[0] for check in sections['correctness']['checks']}
    assert kinds == {'attention', 'norm', 'network'}
    assert sections['sanitizer']['verdict'] == 'no error', sections['sanitizer']
    assert sections['tiles']['verdict'] == 'complete', sections['tiles']
    assert any(each['note'] == '1.00' for each in sections['tiles']['tried'])
    assert 'aten::' in sections['profile']['table']
    assert sections['profile']['ceilings']['bf16_flops'] > 0


@pytest.mark.slow
def test_every_case_is_timed_in_every_execution(dry_run):
    results, _ = dry_run
    assert [case['name'] for case in results['cases']] == [str(case) for case in DRY_CASES]
    for case in results['cases']:
        ours = {name for name in case['implementations'] if name.startswith('ours')}
        executions = 'ours', 'ours+graph', 'ours+compile', 'ours+compile+graph'
        assert ours == {*executions, 'ours_sdpa', 'ours_sdpa+graph'}, case['left_out']
        # timm may not be installed here.
        assert all('not installed' in why for why in case['left_out'].values()), case['left_out']
        assert set(case['waits_for_device'].values()) == {'never'}


@pytest.mark.slow
def test_report_is_readable(dry_run):
    results, out = dry_run
    text = (out / 'results.md').read_text()
    assert text.startswith('# GPU report (a dry run on a CPU: its numbers mean nothing)')
    for heading in ('Goals', 'Correctness', 'Sanitizer', 'Tiles', 'Profile', *map(str, DRY_CASES)):
        assert f'\n## {heading}\n' in text
    goals = [goal for goal in results['goals'] if goal['case'] == str(DRY_CASES[0])]
    assert len(goals) == 4


def test_sections_are_left_out_when_the_time_runs_out(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, 'Compilation', FakeCompilation)
    monkeypatch.setattr('sys.argv', ['', '--device', 'cpu', '--dry', '--out', str(tmp_path)])
    monkeypatch.setattr(gpu_report, 'LEAST', 10**6)
    gpu_report.main()
    results = json.loads((tmp_path / 'results.json').read_text())
    names = ['correctness', 'sanitizer', *map(str, DRY_CASES), 'tiles', 'profile']
    assert results['left_out'] == dict.fromkeys(names, 'no time was left')
    assert 'left out: tiles (no time was left)' in (tmp_path / 'results.md').read_text()


class FakeCompilation:
    """Compiles nothing."""

    def __init__(self, *_):
        self.closed = False

    def stop(self, at_most):
        assert at_most > 0

    def close(self):
        self.closed = True
