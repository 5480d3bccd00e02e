"""`python -m swinv2_backbone`."""

import runpy
import sys

from swinv2_backbone.checkpoints import RELEASES


def test_every_release_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['swinv2_backbone'])
    runpy.run_module('swinv2_backbone', run_name='__main__')
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ['name', 'format', 'arch']
    assert [line.split()[0] for line in lines[1:]] == list(RELEASES)
    [line] = [line for line in lines if line.startswith('swinv2_tiny_patch4_window16_256 ')]
    assert '[16, 16, 16, 8]' in line
    assert ' 82.8 ' in line
    assert 'MODELHUB.md' in line
