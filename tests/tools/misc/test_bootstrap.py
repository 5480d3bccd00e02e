"""The set-up: what it refuses in one line, what it installs, and when it does so anew."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.benchmarking.implementations import packages_by_folder
from tools.gpu.tritons import FOLDER, TRITONS
from tools.misc import bootstrap, stacks

ROOT = Path(__file__).parents[3]
EVERY_STACK = pytest.mark.parametrize('stack', stacks.STACKS, indirect=True)


def test_wrong_python_is_refused(stack, monkeypatch):
    monkeypatch.setattr(sys, 'version_info', (3, 9, 2))
    with pytest.raises(bootstrap.SetupError, match=r'Python 3\.11 is needed .*, this is 3\.9: run'):
        bootstrap.check_machine(stack, operators=False)


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(bootstrap.shutil, 'which', lambda *_, **__: None)
    monkeypatch.setattr(bootstrap.sysconfig, 'get_paths', lambda: {'include': '/nowhere'})


def test_missing_packages_of_the_system_are_named(stack, no_compiler):
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.check_machine(stack, operators=True)
    assert str(caught.value) == (
        "a C++ compiler and Python's headers not found; on Debian: apt install g++ python3.11-dev"
    )


def test_without_operators_no_compiler_is_needed(stack, no_compiler):
    bootstrap.check_machine(stack, operators=False)


@EVERY_STACK
def test_wheel_at_hand_needs_no_compiler(stack, wheel, no_compiler):
    assert bootstrap.compiled_mmcv(stack) == wheel
    bootstrap.check_machine(stack, operators=True)


def test_environment_of_the_user_is_not_removed(stack, wheel):
    Path(stack.venv, 'lib').mkdir(parents=True)
    with pytest.raises(bootstrap.SetupError, match=r'\.venv was not made by `make env`: move it'):
        bootstrap.check_machine(stack, operators=True)


def test_set_up_removes_what_an_interrupted_one_left(stack, started, wheel, commands):
    (started / 'half-installed').touch()
    bootstrap.main()
    assert not (started / 'half-installed').exists()
    installs = [command for command in commands if 'install' in command]
    assert all(stack.constraints in command for command in installs)
    assert 'torch' in installs[0]
    assert wheel in installs[1]
    count = len(commands)
    bootstrap.main()
    assert len(commands) == count, 'nothing has changed since'


def without_operators(monkeypatch) -> None:
    monkeypatch.setattr(sys, 'argv', [*sys.argv, '--without-operators'])
    bootstrap.main()
    monkeypatch.setattr(sys, 'argv', sys.argv[:-1])


@EVERY_STACK
def test_operators_are_added_once_they_are_needed(stack, commands, monkeypatch):
    without_operators(monkeypatch)
    assert ['build'] not in commands
    assert stack.without_operators in [command for command in commands if 'install' in command][1]
    made = len(commands)
    without_operators(monkeypatch)
    assert len(commands) == made
    bootstrap.main()
    build, uninstall, install, check = commands[made:]
    assert build == ['build']
    assert uninstall[-3:] == ['uninstall', '-y', stack.without_operators]
    assert install[-1] == bootstrap.compiled_mmcv(stack)
    assert 'tools' not in check[-1], 'the operators that are missing must be noticed'
    without_operators(monkeypatch)
    bootstrap.main()
    assert len(commands) == made + 4, 'an environment with operators does for both'


def test_wheel_at_hand_is_used_where_no_operators_are_needed(stack, wheel, commands, monkeypatch):
    without_operators(monkeypatch)
    count = len(commands)
    assert any(wheel in command for command in commands)
    bootstrap.main()
    assert len(commands) == count, 'it has the operators already'


def test_interrupted_exchange_of_mmcv_makes_it_anew(stack, commands, monkeypatch):
    without_operators(monkeypatch)
    made = len(commands)

    def interrupted(self, command, failure, env=None):
        commands.append(command)
        raise bootstrap.SetupError('interrupted')

    with monkeypatch.context() as patch:
        patch.setattr(stacks.Stack, 'run', interrupted)
        with pytest.raises(SystemExit):
            bootstrap.main()
    del commands[made:]
    bootstrap.main()
    assert len(commands) == 2 * made
    assert any(bootstrap.compiled_mmcv(stack) in command for command in commands)


@EVERY_STACK
def test_changed_constraints_make_it_anew(stack, started, wheel, commands, monkeypatch, tmp_path):
    bootstrap.main()
    changed = tmp_path / 'constraints.txt'
    changed.write_text(Path(stacks.CONSTRAINTS).read_text() + 'new==1\n')
    monkeypatch.setattr(stacks, 'CONSTRAINTS', str(changed))
    count = len(commands)
    bootstrap.main()
    assert len(commands) == 2 * count


def test_other_failures_name_the_reason_and_the_log(stack, started, monkeypatch):
    code = 'print("ERROR: No matching distribution found for x==1"); raise SystemExit(1)'
    monkeypatch.setattr(bootstrap, 'check_machine', lambda *_: None)
    monkeypatch.setattr(
        bootstrap, 'set_up', lambda *_: stack.run([sys.executable, '-c', code], 'could not go on')
    )
    with pytest.raises(SystemExit) as caught:
        bootstrap.main()
    assert re.fullmatch(
        r'error: could not go on: No matching distribution found for x==1 \(see .*install\.log\)',
        str(caught.value),
    )


def test_tritons_are_looked_for_where_they_are_installed():
    assert str(FOLDER) == f'{stacks.STACKS["official"].venv}/triton'


@pytest.mark.parametrize(
    'file',
    [
        'misc/bootstrap.py',
        'misc/compiled_mmcv.py',
        'misc/stacks.py',
        '__init__.py',
        'utils/missing_operators.py',
    ],
)
def test_parses_on_old_pythons(file):
    text = (ROOT / 'tools' / file).read_text()
    assert ast.parse(text, feature_version=(3, 6)).body


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['demo', 'TASK=classification'], "TASK: got 'classification', allowed: segmentation or"),
        (['env', 'STACK=other'], "STACK: got 'other', allowed: official or onedl"),
        (['env', 'PYTHON=/nowhere/python'], 'no Python found'),
    ],
)
def test_make_refuses_in_one_line(arguments, message):
    result = subprocess.run(
        ['make', '-C', ROOT, '--no-print-directory', *arguments], capture_output=True, text=True
    )
    assert result.returncode
    assert message in result.stderr.splitlines()[0]


def test_make_uses_an_environment_that_has_the_stack():
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    command = ['make', '-C', ROOT, '--no-print-directory', 'env', f'PYTHON={sys.executable}']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout == (
        f'-- using the environment of {sys.executable}, which has mmdet and mmseg\n'
    )


def test_implementations_are_installed_once_unless_interrupted(stack, commands, monkeypatch):
    def pip(self, *args, failure, python):
        commands.append(args)
        Path(args[args.index('--target') + 1]).mkdir(parents=True)
        if len(commands) == 2:
            raise bootstrap.SetupError('interrupted')

    monkeypatch.setattr(stacks.Stack, 'pip', pip)
    with pytest.raises(bootstrap.SetupError):
        bootstrap.set_up_implementations(stack)
    bootstrap.set_up_implementations(stack)
    bootstrap.set_up_implementations(stack)
    assert len(commands) == 3
    assert {pin for args in commands for pin in args if '==' in pin} == {
        stack.requirement(name) for names in packages_by_folder().values() for name in names
    }
    monkeypatch.setattr(stacks.Stack, 'pinned', lambda self, name: '0')
    bootstrap.set_up_implementations(stack)
    assert len(commands) == 5


def test_each_version_of_triton_has_a_folder(stack, monkeypatch):
    targets = {}

    def pip(self, *args, failure, python):
        folder = Path(args[args.index('--target') + 1])
        folder.mkdir(parents=True)
        targets[args[-1]] = folder

    monkeypatch.setattr(stacks.Stack, 'pip', pip)
    monkeypatch.setattr(sys, 'argv', ['bootstrap.py', 'triton'])
    bootstrap.main()
    expected = {f'triton=={version}': Path(stack.venv, 'triton', version) for version in TRITONS}
    assert targets == expected
    targets.clear()
    bootstrap.main()
    assert targets == {}, 'they are there'
