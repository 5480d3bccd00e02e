"""What is measured of a config, and the file that keeps it."""

import json

import pytest
from mmengine.registry import MODELS, init_default_scope

from tests.helpers.scripts import ROOT, call, error_line
from tools.utils.errors import UserError
from tools.utils.example_batch import build_model, example_batch
from tools.zoo import measuring
from tools.zoo.facts import load

NAME = 'segmentation/upernet_swinv2_tiny_shapes'
# Prints a log line and a result, or fails, as `--measure NAME` does.
SCRIPT = """
import sys
print('a log line')
if 'bad' in sys.argv[2]:
    sys.exit('no memory')
print('{"seconds": ' + str(len(sys.argv[2])) + '}')
"""


@pytest.fixture
def results(monkeypatch, tmp_path):
    """The path of an own file of results."""
    monkeypatch.setattr(measuring, 'RESULTS', tmp_path / 'results.json')
    return tmp_path / 'results.json'


def test_a_config_is_measured(monkeypatch):
    pytest.importorskip('mmseg')
    monkeypatch.setattr(measuring, 'SIDE', 64)
    found = json.loads(json.dumps(measuring.measure(NAME)))
    assert found['parameters'] == sum(p.numel() for p in build_model(load(NAME)).parameters())
    assert found['size'] == [128, 128]
    assert found['multiply_adds'] > 10**9
    # Weights, gradients and the two moments of AdamW are 16 bytes per parameter.
    assert 1e6 * found['megabytes'] > 8 * found['parameters']
    assert found['seconds'] > 0
    again = measuring.measure(NAME, untimed=True, step_only=True)
    assert again['seconds'] is None
    assert set(found) - set(again) == {'parameters', 'multiply_adds', 'size'}


@pytest.mark.parametrize(
    'name',
    ['detection/mask2former_swinv2_tiny_coco', 'segmentation/upernet_swinv2_tiny_640_ade20k'],
)
def test_every_model_is_measured_at_the_same_size(name):
    """And not at the size that its recipe pads batches to."""
    pytest.importorskip('mmseg')
    cfg = measuring.without_padding(load(name))
    batch = example_batch(cfg, (measuring.SIDE, measuring.SIDE), 2)
    init_default_scope(cfg.default_scope)
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    assert preprocessor(batch, training=True)['inputs'].shape == (2, 3, 256, 256)


def test_results_are_added_to_the_file(results, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    measuring.measure_all(['bb'], [str(script), '--measure'])
    measuring.measure_all(['c', 'a'], [str(script), '--measure'])
    assert [*json.loads(results.read_text())] == ['a', 'bb', 'c']
    assert measuring.read_results()['bb'] == dict(seconds=2)
    with pytest.raises(UserError, match='bad: no memory'):
        measuring.measure_all(['d', 'bad', 'e'], [str(script), '--measure'])
    assert [*measuring.read_results()] == ['a', 'bb', 'c', 'd']


def test_what_is_not_measured_again_is_kept(results, tmp_path):
    results.write_text(json.dumps(dict(name=dict(seconds=None, size=[1, 2]))))
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    measuring.measure_all(['name'], [str(script), '--measure'])
    assert measuring.read_results() == dict(name=dict(seconds=4, size=[1, 2]))


def test_step_only_is_for_configs_that_were_measured(results, capsys):
    from tools.analysis_tools import model_zoo

    message = error_line(capsys, model_zoo.main, '--step-only', NAME)
    assert message.endswith(f'--step-only: not measured before: {NAME}')


def test_an_unknown_config_ends_in_one_line(capsys):
    from tools.analysis_tools import model_zoo

    message = error_line(capsys, model_zoo.main, 'detection/dino_swinv2_tiny_cocos')
    assert 'does not exist' in message
    assert "did you mean 'detection/dino_swinv2_tiny_coco'" in message


def test_the_command_writes_the_documents(results, monkeypatch, tmp_path, capsys):
    """With one config measured, into another folder."""
    from tools.analysis_tools import model_zoo
    from tools.zoo import metafile

    measured = dict(
        parameters=123_400_000,
        multiply_adds=5_600_000_000,
        size=[128, 128],
        megabytes=789,
        seconds=1.25,
        machine='a machine',
    )
    results.write_text(json.dumps({NAME: measured}))
    monkeypatch.setattr(model_zoo, 'PAGE', tmp_path / 'page.md')
    written = {
        tmp_path / path.name: text for path, text in metafile.metafiles({NAME: measured}).items()
    }
    monkeypatch.setattr(model_zoo, 'metafiles', lambda results: written)
    call(model_zoo.main, '--write-only')
    row = next(r for r in (tmp_path / 'page.md').read_text().splitlines() if f'/{NAME}.py' in r)
    assert row.split(' | ')[2:7] == ['123.4 M', '5.6 G', '128 x 128', '789 MB', '1.2 s']
    assert 'Measured on: a machine.' in (tmp_path / 'page.md').read_text()
    assert (tmp_path / 'model-index.yml').exists()
    assert str(tmp_path / 'page.md') in capsys.readouterr().out
    assert (
        'FLOPs: 5600000000'
        in metafile.metafiles({NAME: measured})[ROOT / 'configs/segmentation/metafile.yml']
    )
