"""time_exported.py: a row for each runtime, precision and kind of file."""

from importlib.util import find_spec

import pytest

from tests.helpers.scripts import call

for needed in ('onnxscript', 'onnxruntime', 'openvino'):
    pytest.importorskip(needed)

from tools.analysis_tools import time_exported


@pytest.mark.slow
def test_a_row_for_each_candidate(tmp_path, capfd):
    # The folder has no other implementation: what cannot be built is left out, with the reason.
    options = '--implementations', 'timm', 'ours_without_norms', '--no-int8'
    options += '--implementations-folder', tmp_path
    small = '--arch', 'mini', '--size', 64, '--window-size', 8, '--rounds', 2
    call(time_exported.main, *small, *options)
    lines = capfd.readouterr().out.splitlines()
    rows = [line.strip('| ').split(' | ') for line in lines if line.startswith('| ')]
    assert [row[0].split(',')[0] for row in rows[1:]] == [
        *['torch'] * (4 if find_spec('torchao') else 3),
        *['onnxruntime', 'OpenVINO', 'OpenVINO'],
        *[f'ours_without_norms: {each}' for each in ('onnxruntime', 'OpenVINO', 'OpenVINO')],
        *['onnxruntime', 'OpenVINO', 'OpenVINO'],
    ]
    assert all(float(number) > 0 for row in rows[1:] for number in row[1:])
    assert rows[1][-1] == '1.00'
    assert any(line.startswith('- timm is left out: not installed') for line in lines)
