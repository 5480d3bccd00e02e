"""`python -m swinv2_backbone`."""

import os
import runpy
import subprocess
import sys

import pytest

from swinv2_backbone.__main__ import COMMANDS, tools_folder
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


def test_a_reader_may_end_before_the_table():
    """As `head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, '-m', 'swinv2_backbone']
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, '')


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['swinv2_backbone', *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module('swinv2_backbone', run_name='__main__')
    return ended.value.code


@pytest.mark.parametrize('command', COMMANDS)
def test_a_command_runs_its_tool(command, monkeypatch, capsys):
    if command != 'demo':
        pytest.importorskip('mmengine')
    assert run(monkeypatch, command, '--help') == 0
    assert capsys.readouterr().out.startswith(f'usage: {(tools_folder() / COMMANDS[command]).name}')


def test_an_unknown_command_is_refused(monkeypatch, capsys):
    assert run(monkeypatch, 'tran') == 2
    assert "'tran'" in capsys.readouterr().err
