"""tools/model_converters/convert_checkpoint.py: its options reach the package's `convert`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from tests.helpers.models import SMALL_ARCH
from tools.model_converters import convert_checkpoint
from tools.utils.errors import UserError

SCRIPT = Path(__file__).parents[2] / 'tools/model_converters/convert_checkpoint.py'


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['convert_checkpoint.py', *map(str, args)])
    convert_checkpoint.main()


@pytest.fixture
def ours(tmp_path):
    state = SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes=4).state_dict()
    torch.save(state, tmp_path / 'ours.pth')
    return tmp_path / 'ours.pth'


DEFAULTS = dict(
    source='a.pth',
    destination=Path('b.pth'),
    to='timm',
    safetensors=False,
    prefix=None,
    drop=[],
    pretrained_window_sizes=None,
    window_size=None,
    img_size=None,
    force=False,
)


@pytest.mark.parametrize(
    ('options', 'arguments'),
    [
        ('', {}),
        ('--safetensors --force', dict(safetensors=True, force=True)),
        ('--prefix teacher.', dict(prefix='teacher.')),
        ('--drop norm0 head', dict(drop=['norm0', 'head'])),
        ('--pretrained-window-sizes 8', dict(pretrained_window_sizes=8)),
        ('--pretrained-window-sizes 6 4', dict(pretrained_window_sizes=[6, 4])),
        ('--pretrained-window-sizes 16 16 16 8', dict(pretrained_window_sizes=[16, 16, 16, 8])),
        ('--window-size 16 --img-size 512', dict(window_size=16, img_size=512)),
    ],
)
def test_options_are_arguments_of_convert(monkeypatch, options, arguments):
    received = []
    monkeypatch.setattr(convert_checkpoint, 'convert', lambda **kwargs: received.append(kwargs))
    run(monkeypatch, 'a.pth', 'b.pth', '--to', 'timm', *options.split())
    assert received == [DEFAULTS | arguments]


def test_one_line_says_what_was_done(ours, monkeypatch, capsys):
    there = ours.with_name('x.pth')
    run(monkeypatch, ours, there, '--to', 'timm', '--drop', 'norm0', 'norm1', 'norm2')
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f'{ours} (swinv2_backbone) -> {there} (timm): ')
    assert there.is_file()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['absent.pth', 'x.pth', '--to', 'timm'], 'absent.pth: no such file'),
        (['ours.pth', 'ours.pth', '--to', 'timm'], 'destination: ours.pth exists; force'),
        (['ours.pth', 'x.pth', '--to', 'timm'], r'norm0\.weight.*: --drop norm0 norm1 norm2$'),
    ],
)
def test_mistakes_are_user_errors(ours, monkeypatch, args, message):
    monkeypatch.chdir(ours.parent)
    with pytest.raises(UserError, match=message):
        run(monkeypatch, *args)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--to', 'keras'], "invalid choice: 'keras'"),
        (['--to', 'timm', '--drop', 'norm4'], "invalid choice: 'norm4'"),
        (['--to', 'timm', '--window-size', '0'], "got '0', allowed: an integer of at least 1"),
    ],
)
def test_unknown_values_of_options_end_with_one_line(monkeypatch, capsys, args, message):
    with pytest.raises(SystemExit, match='2'):
        run(monkeypatch, 'a.pth', 'b.pth', *args)
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_script_runs_from_any_folder(ours):
    command = [sys.executable, SCRIPT, 'ours.pth', 'x.pth', '--to', 'official']
    done = subprocess.run(command, cwd=ours.parent, capture_output=True, text=True)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith('convert_checkpoint.py: error: ')
    assert 'the official format has no place for norm0.weight' in line
