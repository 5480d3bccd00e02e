"""time_exported.py: a row for each runtime, precision and kind of file."""

import pytest

from tests.helpers.scripts import call

for needed in ('onnxscript', 'onnxruntime', 'openvino'):
    pytest.importorskip(needed)

from tools.analysis_tools import time_exported


@pytest.mark.slow
def test_a_row_for_each_candidate(capfd):
    call(time_exported.main, '--size', 64, '--window-size', 8, '--rounds', 2)
    header, *rows = capfd.readouterr().out.strip().splitlines()[-9:]
    assert header.split()[-6:] == ['median', 'ms', 'min', 'ms', 'of', 'torch']
    assert [row.split(',')[0] for row in rows] == [
        *['torch'] * 2,
        *['onnxruntime', 'OpenVINO', 'OpenVINO'] * 2,
    ]
