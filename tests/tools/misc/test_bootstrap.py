"""The set-up: what it refuses in one line, what it installs, and when it does so anew."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.benchmarking.implementations import packages_by_folder
from tools.gpu.tritons import FOLDER, TRITONS
from tools.misc import bootstrap

ROOT = Path(__file__).parents[3]


@pytest.fixture
def venv(tmp_path, monkeypatch):
    """The path of a `.venv` that is not there yet, and no wheel of mmcv at hand."""
    path = tmp_path / '.venv'
    monkeypatch.setattr(bootstrap, 'VENV', str(path))
    monkeypatch.setattr(bootstrap, 'LOG', str(path / 'install.log'))
    monkeypatch.setattr(bootstrap, 'STAMP', str(path / 'installed'))
    monkeypatch.setattr(bootstrap, 'IMPLEMENTATIONS', str(path / 'implementations'))
    monkeypatch.setattr(bootstrap, 'TRITON', str(path / 'triton'))
    monkeypatch.setattr(bootstrap, 'CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(sys, 'argv', ['bootstrap.py'])
    monkeypatch.delenv('PIP_FIND_LINKS', raising=False)
    return path


@pytest.fixture
def started(venv):
    """The path of a `.venv` whose set-up has begun."""
    venv.mkdir()
    (venv / 'install.log').touch()
    return venv


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The path of a wheel of mmcv in a folder of PIP_FIND_LINKS."""
    path = tmp_path / f'mmcv-{bootstrap.pinned("mmcv")}-cp311-cp311-linux_x86_64.whl'
    path.touch()
    monkeypatch.setenv('PIP_FIND_LINKS', f'https://host/links {tmp_path}')
    return str(path)


@pytest.fixture
def commands(monkeypatch):
    """The commands that the set-up would run."""
    recorded = []

    def run(command, failure, env=None):
        recorded.append(command)
        Path(bootstrap.LOG).touch()

    monkeypatch.setattr(bootstrap, 'run', run)
    monkeypatch.setattr(bootstrap, 'cuda_of_torch', lambda python: '')
    monkeypatch.setattr(bootstrap, 'replace_opencv_without_libgl', lambda python: None)
    return recorded


def test_constraints_pin_everything_that_is_installed():
    [call] = [
        node.value
        for node in ast.parse((ROOT / 'setup.py').read_text()).body
        if isinstance(node, ast.Expr) and getattr(node.value, 'func', None)
    ]
    extras = next(
        ast.literal_eval(each.value) for each in call.keywords if each.arg == 'extras_require'
    )
    installed = [re.match(r'[\w-]+', name)[0] for each in extras.values() for name in each]
    # (The others are large; tests that need them skip.)
    assert set(extras) - set(bootstrap.EXTRAS.split(',')) == {'deploy', 'vis'}
    installed += [name for names in packages_by_folder().values() for name in names]
    for name in bootstrap.BASE + installed:
        assert re.fullmatch(r'\d[\w.]*', bootstrap.pinned(name)), name
    lines = (ROOT / 'constraints.txt').read_text().splitlines()
    assert all(line[0] == '#' or re.fullmatch(r'[\w.-]+==\d[\w.]*', line) for line in lines)


def test_wrong_python_is_refused(venv, monkeypatch):
    monkeypatch.setattr(sys, 'version_info', (3, 9, 2))
    with pytest.raises(bootstrap.SetupError, match=r'Python 3\.11 is needed .*, this is 3\.9: run'):
        bootstrap.check_machine()


def test_missing_packages_of_the_system_are_named(venv, monkeypatch):
    monkeypatch.setattr(bootstrap.shutil, 'which', lambda *_, **__: None)
    monkeypatch.setattr(bootstrap.sysconfig, 'get_paths', lambda: {'include': '/nowhere'})
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.check_machine()
    assert str(caught.value) == (
        "a C++ compiler and Python's headers not found; on Debian: apt install g++ python3.11-dev"
    )


def test_wheel_at_hand_needs_no_compiler(venv, wheel, monkeypatch):
    monkeypatch.setattr(bootstrap.shutil, 'which', lambda *_, **__: None)
    assert bootstrap.compiled_mmcv() == wheel
    bootstrap.check_machine()


def test_environment_of_the_user_is_not_removed(venv, wheel):
    (venv / 'lib').mkdir(parents=True)
    with pytest.raises(bootstrap.SetupError, match=r'\.venv was not made by `make env`: move it'):
        bootstrap.check_machine()


def test_set_up_removes_what_an_interrupted_one_left(started, wheel, commands):
    (started / 'half-installed').touch()
    bootstrap.main()
    assert not (started / 'half-installed').exists()
    installs = [command for command in commands if 'install' in command]
    assert all(bootstrap.CONSTRAINTS in command for command in installs)
    assert 'torch' in installs[0]
    assert wheel in installs[1]
    count = len(commands)
    bootstrap.main()
    assert len(commands) == count, 'nothing has changed since'


def test_changed_constraints_make_it_anew(started, wheel, commands, monkeypatch, tmp_path):
    bootstrap.main()
    changed = tmp_path / 'constraints.txt'
    changed.write_text(Path(bootstrap.CONSTRAINTS).read_text() + 'new==1\n')
    monkeypatch.setattr(bootstrap, 'CONSTRAINTS', str(changed))
    count = len(commands)
    bootstrap.main()
    assert len(commands) == 2 * count


def test_second_set_up_waits_for_the_first(venv):
    code = (
        'from tools.misc import bootstrap as b; '
        f"b.CACHE = {bootstrap.CACHE!r}; lock = b.lock(); lock.__enter__(); print('held'); input()"
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


def test_no_network_is_one_line(started):
    code = 'print("NewConnectionError: Failed to establish"); raise SystemExit(1)'
    with pytest.raises(bootstrap.SetupError, match=r'^no network: pip cannot reach') as caught:
        bootstrap.run([sys.executable, '-c', code], 'could not install')
    assert '\n' not in str(caught.value)


def test_other_failures_name_the_reason_and_the_log(started, monkeypatch):
    code = 'print("ERROR: No matching distribution found for x==1"); raise SystemExit(1)'
    monkeypatch.setattr(bootstrap, 'check_machine', lambda: None)
    monkeypatch.setattr(
        bootstrap, 'set_up', lambda: bootstrap.run([sys.executable, '-c', code], 'could not go on')
    )
    with pytest.raises(SystemExit) as caught:
        bootstrap.main()
    assert re.fullmatch(
        r'error: could not go on: No matching distribution found for x==1 \(see .*install\.log\)',
        str(caught.value),
    )


def test_pip_without_an_index_is_recognized(started, monkeypatch):
    monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9/simple')
    monkeypatch.setenv('PIP_EXTRA_INDEX_URL', '')
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    command = ('download', '--retries', '1', '--no-deps', '-d', str(started), 'no-such-package')
    with pytest.raises(bootstrap.SetupError, match='no network'):
        bootstrap.pip(sys.executable, *command, failure='could not download')


def test_tritons_are_looked_for_where_they_are_installed():
    assert str(FOLDER) == bootstrap.TRITON


def test_parses_on_old_pythons():
    text = (ROOT / 'tools/misc/bootstrap.py').read_text()
    assert ast.parse(text, feature_version=(3, 6)).body


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['demo', 'TASK=classification'], "TASK: got 'classification', allowed: segmentation or"),
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


def test_implementations_are_installed_once_unless_interrupted(started, commands, monkeypatch):
    def pip(python, *args, failure):
        commands.append(args)
        Path(args[args.index('--target') + 1]).mkdir(parents=True)
        if len(commands) == 2:
            raise bootstrap.SetupError('interrupted')

    monkeypatch.setattr(bootstrap, 'pip', pip)
    with pytest.raises(bootstrap.SetupError):
        bootstrap.set_up_implementations()
    bootstrap.set_up_implementations()
    bootstrap.set_up_implementations()
    assert len(commands) == 3
    assert {pin for args in commands for pin in args if '==' in pin} == {
        f'{name}=={bootstrap.pinned(name)}'
        for names in packages_by_folder().values()
        for name in names
    }
    monkeypatch.setattr(bootstrap, 'pinned', lambda name: '0')
    bootstrap.set_up_implementations()
    assert len(commands) == 5


def test_each_version_of_triton_has_a_folder(started, monkeypatch):
    targets = {}

    def pip(python, *args, failure):
        folder = Path(args[args.index('--target') + 1])
        folder.mkdir(parents=True)
        targets[args[-1]] = folder

    monkeypatch.setattr(bootstrap, 'pip', pip)
    monkeypatch.setattr(sys, 'argv', ['bootstrap.py', 'triton'])
    bootstrap.main()
    expected = {f'triton=={version}': Path(bootstrap.TRITON, version) for version in TRITONS}
    assert targets == expected
    targets.clear()
    bootstrap.main()
    assert targets == {}, 'they are there'
