"""OpenMMLab's packages and the maintained forks train the same, and resume from each other.

Needs the environments of `make env` and of `make env STACK=onedl`.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from swinv2_backbone.compat import safe_mmengine_globals
from tests.helpers.scripts import ROOT
from tools.misc.stacks import STACKS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(os.path.exists(stack.stamp) for stack in STACKS.values()),
        reason='needs .venv and .venv-onedl',
    ),
]


def train(stack: str, config: Path, work_dir: Path, *options: str) -> tuple[dict, dict]:
    """Train for six iterations: the losses by iteration, and the last weights."""
    command = [STACKS[stack].python, str(ROOT / 'tools/train.py'), str(config), '--seed', '0']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    command += ['--work-dir', str(work_dir), *options]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    [log] = work_dir.glob('*/vis_data/scalars.json')
    scalars = [json.loads(line) for line in log.read_text().splitlines()]
    losses = {each['step']: each['loss'] for each in scalars if 'loss' in each}
    with safe_mmengine_globals():
        return losses, torch.load(work_dir / 'iter_6.pth', weights_only=True)['state_dict']


@pytest.mark.parametrize('task', ['segmentation', 'detection'])
def test_both_stacks_train_the_same_and_resume_from_each_other(tasks, task, tmp_path):
    config = tasks.configs[task]
    losses, weights = train('official', config, tmp_path / 'official')
    assert set(losses) == set(range(1, 7))
    others = {'onedl': train('onedl', config, tmp_path / 'onedl')}
    for stack, source in (('official', 'onedl'), ('onedl', 'official')):
        checkpoint = str(tmp_path / source / 'iter_4.pth')
        resumed = train(stack, config, tmp_path / f'from_{source}', '--resume', checkpoint)
        others[f'{stack} from {source}'] = resumed
    for name, (other_losses, other_weights) in others.items():
        assert other_losses == {step: losses[step] for step in other_losses}, name
        assert max(other_losses) == 6, name
        torch.testing.assert_close(other_weights, weights, rtol=0, atol=0, msg=name)
