"""The set-up: what it refuses in one line, and how it picks up what was interrupted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.misc import bootstrap

ROOT = Path(__file__).parents[2]


@pytest.fixture
def venv(tmp_path, monkeypatch):
    """bootstrap with an empty folder for its .venv and no wheel of mmcv at hand."""
    monkeypatch.setattr(bootstrap, 'VENV', str(tmp_path / '.venv'))
    monkeypatch.setattr(bootstrap, 'LOG', str(tmp_path / 'install.log'))
    monkeypatch.setattr(bootstrap, 'STAMP', str(tmp_path / '.venv' / 'installed'))
    monkeypatch.setattr(bootstrap, 'CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('PIP_FIND_LINKS', raising=False)
    return tmp_path / '.venv'


def test_constraints_pin_everything_that_is_installed():
    for name in bootstrap.BASE + bootstrap.STACK:
        assert re.fullmatch(r'\d[\w.]*', bootstrap.pinned(name)), name
    lines = [
        line
        for line in (ROOT / 'constraints.txt').read_text().splitlines()
        if not line.startswith('#')
    ]
    assert all(re.fullmatch(r'[\w.-]+==\d[\w.]*', line) for line in lines)


def test_wrong_python(venv, monkeypatch):
    monkeypatch.setattr(sys, 'version_info', (3, 9, 2))
    with pytest.raises(bootstrap.SetupError, match=r'Python 3\.11 is needed .*, this is 3\.9: run'):
        bootstrap.check_machine()


def test_missing_compiler_and_headers(venv, monkeypatch):
    monkeypatch.setattr(bootstrap.shutil, 'which', lambda *_, **__: None)
    monkeypatch.setattr(bootstrap.sysconfig, 'get_paths', lambda: {'include': '/nowhere'})
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.check_machine()
    assert str(caught.value) == (
        "a C++ compiler and Python's headers not found; on Debian: apt install g++ python3.11-dev"
    )


def test_a_wheel_at_hand_needs_no_compiler(venv, monkeypatch, tmp_path):
    wheel = tmp_path / f'mmcv-{bootstrap.pinned("mmcv")}-cp311-cp311-linux_x86_64.whl'
    wheel.touch()
    monkeypatch.setattr(bootstrap.shutil, 'which', lambda *_, **__: None)
    monkeypatch.setenv('PIP_FIND_LINKS', f'https://host/links {tmp_path}')
    assert bootstrap.compiled_mmcv() == str(wheel)
    bootstrap.check_machine()


def test_a_killed_set_up_takes_its_children_along_and_the_next_one_waits(venv):
    code = (
        'import signal, sys; from tools.misc import bootstrap as b; '
        f'b.CACHE, b.LOG = {bootstrap.CACHE!r}, {bootstrap.LOG!r}; '
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); b.take_lock(); print('held'); "
        f"b.run(['bash', '-c', 'sleep 1000 & echo $! > {venv}.pid; wait'], 'x')"
    )
    start = [sys.executable, '-u', '-c', code]
    first = subprocess.Popen(start, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert first.stdout.readline() == 'held\n'
    second = subprocess.Popen(start, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert second.stdout.readline() == '-- waiting for another set-up to end\n'
    second.terminate()
    assert second.wait(timeout=20) == 3
    pid = Path(f'{venv}.pid')
    while not pid.exists() or not pid.read_text():
        assert first.poll() is None
    assert is_running(pid.read_text().strip())
    first.terminate()
    assert first.wait(timeout=20) == 3
    assert not is_running(pid.read_text().strip())


def is_running(pid):
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except FileNotFoundError:
        return False
    return state != 'Z'  # ended, but nobody has asked for its status


def test_no_network_is_one_line(venv):
    code = 'print("NewConnectionError: Failed to establish"); raise SystemExit(1)'
    with pytest.raises(bootstrap.SetupError, match=r'^no network: pip cannot reach') as caught:
        bootstrap.run([sys.executable, '-c', code], 'could not install')
    assert '\n' not in str(caught.value)


def test_another_failure_names_the_reason_and_the_log(venv):
    code = 'print("ERROR: No matching distribution found for x==1"); raise SystemExit(1)'
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.run([sys.executable, '-c', code], 'could not install x')
    assert re.fullmatch(
        r'could not install x: No matching distribution found for x==1 '
        r'\(all of it: .*install\.log\)',
        str(caught.value),
    )


def test_no_network_for_real(tmp_path):
    """pip's own words when there is no index to be reached."""
    command = [
        sys.executable,
        '-m',
        'pip',
        'download',
        '--retries',
        '1',
        '--no-deps',
        '-d',
        tmp_path,
        'a-package-that-does-not-exist',
    ]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            'PIP_INDEX_URL': 'http://127.0.0.1:9/simple',
            'PIP_EXTRA_INDEX_URL': '',
            'PIP_CONFIG_FILE': os.devnull,
        },
    )
    assert any(sign in result.stdout + result.stderr for sign in bootstrap.NETWORK_SIGNS)


def test_half_installed_packages_are_removed(venv):
    site = venv / 'lib' / 'python3.11' / 'site-packages'
    for name, files, record in (
        ('whole', ['whole/a.py'], True),
        ('no_record', ['b.py'], False),
        ('file_missing', ['c.py'], True),
    ):
        info = site / f'{name}-1.0.dist-info'
        info.mkdir(parents=True)
        (info / 'METADATA').write_text(f'Name: {name}\nVersion: 1.0\n')
        if record:
            (info / 'RECORD').write_text(''.join(f'{file},,\n' for file in files))
    (site / 'whole').mkdir()
    (site / 'whole' / 'a.py').touch()
    (site / '~ackup').mkdir()
    bootstrap.remove_half_installed()
    assert sorted(p.name for p in site.iterdir()) == ['whole', 'whole-1.0.dist-info']


def test_installed_only_for_the_same_constraints(venv, monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, 'PYTHON', sys.executable)
    assert not bootstrap.is_installed()
    venv.mkdir()
    (venv / 'installed').write_text(bootstrap.fingerprint())
    assert bootstrap.is_installed()
    changed = tmp_path / 'constraints.txt'
    changed.write_text('torch==9\n')
    monkeypatch.setattr(bootstrap, 'CONSTRAINTS', str(changed))
    assert not bootstrap.is_installed()


def test_parses_on_old_pythons():
    import ast

    assert ast.parse((ROOT / 'tools/misc/bootstrap.py').read_text(), feature_version=(3, 6)).body


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


def test_peers_are_installed_whole_and_once(venv, monkeypatch):
    """Into folders that appear when they are complete, and again when a pin changes."""
    monkeypatch.setattr(bootstrap, 'IMPLEMENTATIONS_FOLDER', str(venv / 'implementations'))
    calls = []

    def pip(*args, failure):
        folder = Path(args[args.index('--target') + 1])
        folder.mkdir(parents=True)
        calls.append(args)
        if len(calls) == 2:
            raise bootstrap.SetupError('interrupted')

    monkeypatch.setattr(bootstrap, 'pip', pip)
    with pytest.raises(bootstrap.SetupError):
        bootstrap.set_up_implementations()
    assert (venv / 'implementations/hf/installed').exists()
    assert not (venv / 'implementations/mmpretrain').exists()
    bootstrap.set_up_implementations()
    bootstrap.set_up_implementations()
    assert len(calls) == 3
    assert {pin for args in calls for pin in args if '==' in pin} == {
        f'{name}=={bootstrap.pinned(name)}'
        for names in bootstrap.IMPLEMENTATIONS.values()
        for name in names
    }
    monkeypatch.setattr(bootstrap, 'pinned', lambda name: '0')
    bootstrap.set_up_implementations()
    assert len(calls) == 5
