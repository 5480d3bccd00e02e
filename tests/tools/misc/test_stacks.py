"""The stacks: what is pinned, and how pip's failures are shown."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.benchmarking.implementations import packages_by_folder
from tools.misc import bootstrap, stacks

ROOT = Path(__file__).parents[3]


def read_extras() -> dict[str, list[str]]:
    """The extras of setup.py: names without versions."""
    [call] = [
        node.value
        for node in ast.parse((ROOT / 'setup.py').read_text()).body
        if isinstance(node, ast.Expr) and getattr(node.value, 'func', None)
    ]
    extras = next(
        ast.literal_eval(each.value) for each in call.keywords if each.arg == 'extras_require'
    )
    return {
        extra: [re.match(r'[\w-]+', name)[0] for name in names] for extra, names in extras.items()
    }


def test_extras_of_the_set_up():
    extras = read_extras()
    assert set(extras['openmmlab']) == {'mmcv', *bootstrap.OPENMMLAB}
    # (The others are large; tests that need them skip.)
    assert set(extras) - set(bootstrap.EXTRAS.split(',')) == {
        'openmmlab',
        'deploy',
        'vis',
        'docs',
        'demo',
    }


@pytest.mark.parametrize('name', stacks.STACKS)
def test_constraints_pin_everything_that_is_installed(name):
    stack = stacks.STACKS[name]
    installed = [each for names in read_extras().values() for each in names]
    installed += [each for names in packages_by_folder().values() for each in names]
    for package in [*bootstrap.BASE, *installed, stack.without_operators]:
        assert re.fullmatch(r'\d[\w.]*', stack.pinned(package)), package
    files = [stacks.CONSTRAINTS, *filter(None, [stack.overrides])]
    lines = [line for file in files for line in Path(file).read_text().splitlines()]
    assert all(line[0] == '#' or re.fullmatch(r'[\w.-]+==\d[\w.]*', line) for line in lines)


def test_forks_are_installed_by_their_names():
    names = list(map(stacks.STACKS['onedl'].requirement, ['mmcv', 'mmdet', 'numpy', 'torch']))
    pins = stacks.STACKS['official'].pins()
    assert names == [
        'onedl-mmcv==2.3.6',
        'onedl-mmdetection==3.5.1',
        'numpy==2.2.6',
        'torch==' + pins['torch'],
    ]


def test_second_set_up_waits_for_the_first(stack):
    code = (
        'from tools.misc import stacks as s; '
        f"s.CACHE = {stacks.CACHE!r}; lock = s.lock(); lock.__enter__(); print('held'); input()"
    )

    def start():
        return subprocess.Popen(
            [sys.executable, '-u', '-c', code],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    with start() as first:
        assert first.stdout.readline() == 'held\n'
        with start() as second:
            assert second.stdout.readline() == '-- waiting for another set-up to end\n'
            first.communicate('\n')
            assert second.communicate('\n')[0] == 'held\n'


def test_no_network_is_one_line(stack, started):
    code = 'print("NewConnectionError: Failed to establish"); raise SystemExit(1)'
    with pytest.raises(bootstrap.SetupError, match=r'^no network: pip cannot reach') as caught:
        stack.run([sys.executable, '-c', code], 'could not install')
    assert '\n' not in str(caught.value)


def test_pip_without_an_index_is_recognized(stack, started, monkeypatch):
    monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9/simple')
    monkeypatch.setenv('PIP_EXTRA_INDEX_URL', '')
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    command = ('download', '--retries', '1', '--no-deps', '-d', str(started), 'no-such-package')
    with pytest.raises(bootstrap.SetupError, match='no network'):
        stack.pip(*command, failure='could not download', python=sys.executable)
