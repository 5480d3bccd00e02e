"""--vis: both toolboxes log scalars and predictions; without it there are curves at the end."""

import pytest
from mmengine.config import Config

from tests.helpers.scripts import call
from tools.engine.watching import BACKENDS, use_vis
from tools.utils.errors import UserError

TASKS = ('segmentation', 'detection')


@pytest.mark.parametrize('task', TASKS)
def test_curves_at_the_end(tasks, tmp_path, task):
    from tools import train

    call(train.main, tasks.configs[task], '--work-dir', tmp_path)
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')
    assert (
        f'losses and metrics: {tmp_path}/curves.png' in next(tmp_path.glob('*/*.log')).read_text()
    )
    assert not list(tmp_path.glob('*/vis_data/vis_image/*')), 'no predictions without --vis'


@pytest.mark.parametrize('task', TASKS)
def test_tensorboard(tasks, tmp_path, task):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from tools import train

    call(train.main, tasks.configs[task], '--work-dir', tmp_path, '--vis', 'tensorboard')
    [file] = tmp_path.glob('*/vis_data/events.*')
    events = EventAccumulator(str(file)).Reload()
    assert [event.step for event in events.Scalars('loss')] == [1, 2, 3, 4, 5, 6]
    metric = {'segmentation': 'mIoU', 'detection': 'coco/segm_mAP'}[task]
    assert len(events.Scalars(metric)) == 1
    # mmseg has a tag for each image, mmdet one with a step for each.
    images = sum(len(events.Images(tag)) for tag in events.Tags()['images'])
    assert images == 3


def test_wandb_logs_offline(tasks, tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    from tools import train

    monkeypatch.delenv('WANDB_MODE', raising=False)
    call(train.main, tasks.configs['segmentation'], '--work-dir', tmp_path, '--vis', 'wandb')
    [run] = tmp_path.glob('*/vis_data/wandb/offline-run-*')
    assert list(run.glob('*.wandb'))
    assert len(list(run.glob('files/media/images/*.png'))) == 3


def test_config(monkeypatch):
    cfg = Config(
        dict(
            visualizer=dict(vis_backends=[dict(type='LocalVisBackend')]),
            work_dir='work/name',
            default_scope='mmpretrain',
            default_hooks=dict(visualization=dict(type='VisualizationHook', enable=False)),
        )
    )
    monkeypatch.setattr('tools.engine.watching.find_spec', lambda name: name)
    monkeypatch.setenv('WANDB_MODE', 'online')
    for _ in range(2):
        for name in BACKENDS:
            use_vis(cfg, name)
    assert cfg.visualizer.vis_backends == [
        dict(type='LocalVisBackend'),
        dict(type='TensorboardVisBackend'),
        dict(type='WandbVisBackend', init_kwargs=dict(mode='online', name='name')),
    ]
    assert cfg.default_hooks.visualization.enable
    cfg.visualizer = None
    with pytest.raises(UserError, match='the config lacks visualizer'):
        use_vis(cfg, 'wandb')
    monkeypatch.setattr('tools.engine.watching.find_spec', lambda name: None)
    with pytest.raises(UserError, match='--vis wandb: is not installed: pip install wandb'):
        use_vis(cfg, 'wandb')
