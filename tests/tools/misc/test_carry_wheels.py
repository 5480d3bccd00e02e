"""The wheels for a GPU machine."""

import re

import pytest

from tools.misc import carry_wheels
from tools.misc.stacks import STACKS


def test_wheels_are_pinned_and_for_that_machine(tmp_path):
    command = carry_wheels.command(tmp_path)
    pins = [word for word in command if '==' in word]
    assert STACKS['official'].requirement('mmengine') in pins
    assert len(pins) == len(carry_wheels.PACKAGES) + len(carry_wheels.OTHER_VERSIONS)
    assert '--no-deps' in command
    assert command[command.index('--python-version') + 1] == '3.12'


def test_names_are_written_beside_the_wheels(tmp_path, monkeypatch, capsys):
    def run(command):
        (tmp_path / 'mmengine-0-py3-none-any.whl').write_bytes(b'x' * 10**6)
        return type('Done', (), dict(returncode=0))

    monkeypatch.setattr(carry_wheels.subprocess, 'run', run)
    monkeypatch.setattr('sys.argv', ['', '--out', str(tmp_path)])
    carry_wheels.main()
    names = (tmp_path / 'names.txt').read_text().split()
    assert names[0] == 'mmengine'
    assert 'torchvision' in names
    assert not re.search('==', ' '.join(names)), 'what is there in another version is kept'
    assert '1 wheels, 1 MB' in capsys.readouterr().out


def test_failure_is_one_line(tmp_path, monkeypatch):
    failed = type('Done', (), dict(returncode=1))
    monkeypatch.setattr(carry_wheels.subprocess, 'run', lambda command: failed)
    monkeypatch.setattr('sys.argv', ['', '--out', str(tmp_path)])
    with pytest.raises(SystemExit, match='could not download the wheels'):
        carry_wheels.main()
