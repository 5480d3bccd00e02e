"""tools/analysis_tools/compare_backbones.py: models, trainings, the table, mistakes."""

import json

import pytest
import torch

from tests.helpers.scripts import ROOT, call, error_line
from tools.analysis_tools import compare_backbones
from tools.analysis_tools.compare_backbones import BACKBONES, Training, summary, use_backbone
from tools.utils.example_batch import build_model, example_batch

pytest.importorskip('mmseg')


@pytest.mark.parametrize('name', BACKBONES)
def test_a_model_learns_with_each_backbone(name):
    from mmengine.config import Config

    cfg = Config.fromfile(ROOT / 'configs/segmentation/upernet_swinv2_tiny_nuclei.py')
    use_backbone(cfg, name)
    model = build_model(cfg).train()
    batch = model.data_preprocessor(example_batch(cfg, (128, 128), 2), training=True)
    losses = model(**batch, mode='loss')
    total = sum(value for key, value in losses.items() if 'loss' in key)
    total.backward()
    assert total.isfinite()
    first = next(model.backbone.parameters())
    assert first.grad is not None
    assert torch.count_nonzero(first.grad)


def test_trainings_run_once(tasks, tmp_path, capsys):
    arguments = [tasks.configs['segmentation'], '--backbones', 'swinv2', '--seeds', 0]
    arguments += ['--iterations', 2, '--validate', 1, '--warm-up', 0, '--work-dir', tmp_path]
    call(compare_backbones.main, *arguments)
    [run] = json.loads((tmp_path / 'results.json').read_text())
    assert (run['backbone'], run['lr'], run['warm_up'], run['seed']) == ('swinv2', 5e-4, 0, 0)
    assert [iteration for iteration, _ in run['mIoU']] == [1, 2]
    assert all(0 < score < 100 for _, score in run['mIoU'])
    assert not list(tmp_path.rglob('*.pth'))
    capsys.readouterr()

    [log] = tmp_path.rglob('training.log')
    log.unlink()
    call(compare_backbones.main, *arguments)
    assert not log.exists()
    assert json.loads((tmp_path / 'results.json').read_text()) == [run]
    cells = ['swinv2', '0.0005', '0', '1', *(f'{score:.1f}' for _, score in run['mIoU'])]
    assert f'| {" | ".join(cells)} |' in capsys.readouterr().out.splitlines()


def test_a_training_that_fails_is_named(tasks, tmp_path, capsys):
    arguments = [tasks.configs['segmentation'], '--backbones', 'swinv2', '--seeds', 0]
    arguments += ['--iterations', 2, '--validate', 1, '--warm-up', 0, '--work-dir', tmp_path]
    missing = f'train_dataloader.dataset.data_root={tmp_path}/missing'
    message = error_line(capsys, compare_backbones.main, *arguments, '--cfg-options', missing)
    assert 'swinv2_lr0.0005_warm_up0_seed0: ' in message
    assert f'{tmp_path}/missing' in message


def test_scores_of_seeds_are_averaged():
    curves = {
        Training('swin', 1e-3, 0, 0): [(10, 40.0), (20, 60.0)],
        Training('swin', 1e-3, 0, 1): [(10, 44.0), (20, 60.0)],
        Training('swin', 1e-3, 5, 0): [(10, 50.0), (20, 70.0)],
    }
    assert summary(curves) == [
        ['backbone', 'learning rate', 'warm-up', 'seeds', '10', '20'],
        ['swin', '0.001', '0', '2', '42.0 ± 2.8', '60.0 ± 0.0'],
        ['swin', '0.001', '5', '1', '50.0', '70.0'],
    ]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--warm-up', 0, 300], '--warm-up: got 300, allowed: 0 to less than --iterations'),
        (['--validate', 7], '--validate: got 7, allowed: a divisor of --iterations'),
        (['--backbones', 'vit'], "'vit'"),
    ],
)
def test_mistakes_end_in_one_line(options, message, capsys):
    assert message in error_line(capsys, compare_backbones.main, 'config.py', *options)


def test_the_config_is_a_segmentors(tasks, tmp_path, capsys):
    pytest.importorskip('mmdet')
    arguments = tasks.configs['detection'], '--work-dir', tmp_path
    message = error_line(capsys, compare_backbones.main, *arguments)
    assert "config: got one of mmdet, allowed: a segmentor's, of mmseg" in message
