"""What is written of a benchmark."""

import json

import pytest

from tools.benchmarking import report
from tools.benchmarking.cases import Case
from tools.benchmarking.statistics import summarize


@pytest.fixture
def results():
    """One case, eager and in a CUDA graph."""
    times = {'ours': 4.0, 'ours+graph': 2.0, 'timm+compile': 3.0}
    measured = {name: dict(seconds=[time], bytes=10**6) for name, time in times.items()}
    case = dict(
        name=str(Case('infer', 64, 64, 8, 1, 'bf16')),
        implementations=measured,
        left_out={'timm+graph': 'no reason'},
        trimmed=False,
        **summarize(measured, None),
    )
    machine = dict(device='a GPU', threads=1, versions={'torch': '2', 'timm': None}, flags=[])
    return dict(machine=machine, settings=dict(arch='mini'), cases=[case])


def test_markdown_names_every_execution(results):
    text = report.markdown(results)
    assert '| ours, CUDA graph | 2000.00 |' in text
    assert '- timm, CUDA graph is left out: no reason' in text
    assert '- ours, CUDA graph is 1.50 times as fast as the fastest other' in text
    assert '- versions: torch 2\n- flags: none\n' in text


def test_without_matplotlib_there_is_no_chart(results, tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'find_spec', lambda name: None)
    report.write(results, 'text', tmp_path)
    assert (tmp_path / 'results.md').read_text() == 'text'
    assert json.loads((tmp_path / 'results.json').read_text())['cases'][0]['speed_ratio'] == 1.5
    assert not (tmp_path / 'chart.png').exists()


def test_chart_has_every_execution(results, tmp_path):
    pytest.importorskip('matplotlib')
    report.write(results, 'text', tmp_path)
    assert (tmp_path / 'chart.png').read_bytes().startswith(b'\x89PNG')
