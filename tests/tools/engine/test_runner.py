"""Configs are loaded with their overrides, and checkpoints found and checked."""

import argparse
import os

import pytest
import torch
from torch import nn

from tools.engine.runner import ROOT, check_checkpoint, find_config, load_config, use_checkpoint
from tools.utils.errors import UserError


def arguments(config, **kwargs):
    defaults = dict(cfg_options=None, launcher='none', work_dir=None, local_rank=0)
    return argparse.Namespace(config=str(config), **{**defaults, **kwargs})


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')


@pytest.fixture
def config(tmp_path):
    """Writes a config file with the given text."""
    pytest.importorskip('mmseg')

    def write(text):
        path = tmp_path / 'some_name.py'
        path.write_text(text)
        return path

    return write


def test_work_dir_of_a_config(config):
    path = config("default_scope = 'mmseg'")
    assert load_config(arguments(path)).work_dir == os.path.join('work_dirs', 'some_name')
    assert load_config(arguments(path, work_dir='there')).work_dir == 'there'
    path = config("default_scope = 'mmseg'\nwork_dir = 'here'")
    assert load_config(arguments(path)).work_dir == 'here'


def test_overrides_are_merged(config):
    path = config("default_scope = 'mmseg'\ntrain_cfg = dict(max_iters=6)")
    cfg = load_config(arguments(path, cfg_options={'train_cfg.max_iters': 3, 'resume': True}))
    assert cfg.train_cfg.max_iters == 3
    assert cfg.resume


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ("default_scope = 'mmpose'", "default_scope: got 'mmpose', allowed: 'mmdet' or 'mmseg'"),
        ('x = (', 'SyntaxError: '),
        ('x = 1 / 0', 'ZeroDivisionError: division by zero'),
        ("_base_ = 'nowhere.py'", 'FileNotFoundError: '),
        ("default_scope = 'mmseg'\nparam_schedulr = []", "unknown key 'param_schedulr'"),
    ],
)
def test_broken_config_is_refused(config, text, message):
    with pytest.raises(UserError) as caught:
        load_config(arguments(config(text)))
    assert message in str(caught.value)


def test_use_checkpoint(tmp_path):
    cfg = argparse.Namespace(work_dir='work', resume=True)
    torch.save({}, tmp_path / 'iter_1.pth')
    assert use_checkpoint(cfg, str(tmp_path)) == cfg.load_from == str(tmp_path / 'iter_1.pth')
    assert not cfg.resume, 'a test resumes no training'
    assert use_checkpoint(cfg, 'https://host/x.pth') == cfg.load_from == 'https://host/x.pth'
    with pytest.raises(UserError, match=r"'x\.pth' does not exist; tools.* to 'work'"):
        use_checkpoint(cfg, 'x.pth')


def test_check_checkpoint():
    model = nn.Linear(2, 3)
    state = model.state_dict()
    check_checkpoint({'state_dict': state}, model, strict=True)
    check_checkpoint({f'module.{key}': value for key, value in state.items()}, model, strict=True)
    part = {'bias': state['bias'], 'other': torch.ones(1)}
    check_checkpoint(part, model, strict=False)
    with pytest.raises(UserError) as caught:
        check_checkpoint(part, model, strict=True)
    assert str(caught.value).endswith(
        'it lacks 1 parameters (weight (3, 2)) and has, of no use here, 1 parameters (other (1,))'
    )
    with pytest.raises(UserError, match='it lacks 2 parameters'):
        check_checkpoint({'weight': torch.ones(4, 2)}, model, strict=False)


@pytest.mark.parametrize(
    'name', ['configs/segmentation/upernet_swinv2_tiny_shapes.py', 'upernet_swinv2_tiny_shapes']
)
def test_configs_of_the_package_are_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == ROOT / 'configs/segmentation/upernet_swinv2_tiny_shapes.py'


def test_a_config_in_the_current_folder_comes_first(tmp_path, monkeypatch):
    name = 'configs/segmentation/upernet_swinv2_tiny_shapes.py'
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert find_config(name).resolve() == tmp_path / name


def test_a_misspelled_config_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'upernet_swinv2_tiny_shapes'"):
        find_config('upernet_swin2_tiny_shapes')
