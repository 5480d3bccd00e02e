"""The command line of the tools: types of arguments, and which errors end in one line."""

import argparse
import re

import pytest
import torch

from tests.helpers.scripts import call, error_line
from tools.utils import cli
from tools.utils.errors import UserError


@pytest.mark.parametrize(
    ('text', 'size'),
    [
        ('16', 16),
        ('8x16', (8, 16)),
        ('16,16,16,8', [16, 16, 16, 8]),
        ('8,4x6,8,2', [8, (4, 6), 8, 2]),
    ],
)
def test_window(text, size):
    assert cli.window(text) == (text, size)


@pytest.mark.parametrize(
    'text', ['0', '8x', '8x8x8', '8x8x8x8', '1_6', '8,8', '-4', 'a', '', '8.5', '8,8,8,0']
)
def test_what_is_no_window_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"got '{re.escape(text)}', allowed: a s"):
        cli.window(text)


def test_positive():
    assert cli.positive('12') == 12
    for text in ('0', '-1', '1.5', 'a', ''):
        with pytest.raises(argparse.ArgumentTypeError, match='allowed: an integer of at least 1'):
            cli.positive(text)


def test_device():
    assert cli.device('cpu') == torch.device('cpu')
    for text in ('gpu', 'cuda:99'):
        with pytest.raises(argparse.ArgumentTypeError, match=f"got '{text}': "):
            cli.device(text)


def test_file_type():
    path = cli.file_type('.png', '.pdf')
    assert path('a/b.pdf').name == 'b.pdf'
    with pytest.raises(argparse.ArgumentTypeError, match=r'allowed: a \.png or \.pdf file'):
        path('a.jpg')


@pytest.fixture
def parse():
    """A script that only parses its arguments."""

    def main():
        cli.make_parser('A test.').parse_args()

    return main


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([], 'the following arguments are required: config'),
        (['x.py', '--work-dri', 'y'], "unknown option '--work-dri' (did you mean '--work-dir'?)"),
        (['x.py', '--cfg-options', 'max_iters'], "got 'max_iters', allowed: key=value"),
        (['x.py', '--cfg-options', 'a.b=[1,(2]'], '--cfg-options: cannot be read'),
        (['x.py', '--launcher', 'ssh'], "invalid choice: 'ssh'"),
    ],
)
def test_parser_complains_in_one_line(parse, capsys, args, message):
    assert message in error_line(capsys, parse, *args)


def test_mistake_of_the_user_ends_in_one_line(capsys):
    def main():
        raise UserError('first\nsecond')

    message = error_line(capsys, main)
    assert message.endswith('error: first')


def test_other_classes_are_named_in_the_line(capsys):
    def main():
        raise FileNotFoundError('no such file')

    assert '[FileNotFoundError; SWINV2_TRACEBACK=1 shows the traceback]' in error_line(capsys, main)


def test_traceback_on_request(monkeypatch):
    def main():
        raise UserError('mistake')

    monkeypatch.setenv('SWINV2_TRACEBACK', '1')
    with pytest.raises(UserError):
        call(main)


def test_traceback_after_the_first_batch():
    def main():
        cli.running = True
        raise ValueError('too late')

    with pytest.raises(ValueError, match='too late'):
        call(main)


def test_mistakes_that_a_batch_shows_end_with_one_line(capsys):
    def main():
        cli.running = True
        raise UserError('a bad file')

    assert error_line(capsys, main).endswith(': error: a bad file')


def test_interrupt_ends_with_130():
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        call(main)
    assert ended.value.code == 130
