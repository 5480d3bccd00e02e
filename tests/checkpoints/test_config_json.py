"""config.json of transformers and timm: what it records, and what is written."""

import json
from pathlib import Path

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.arguments import ARCHITECTURES
from swinv2_backbone.checkpoints import (
    FORMATS,
    CheckpointError,
    arch_of,
    from_backbone,
    open_checkpoint,
)
from swinv2_backbone.checkpoints.config_json import hf_config, read_config_json, windows_from_config
from tests.helpers.checkpoint_files import (
    W8,
    W12,
    W16,
    assert_refused,
    headless_state,
    load,
    pairs,
    random_model,
    state_without_tables,
    windows_of,
)
from tests.helpers.models import SMALL_ARCH


def config_of_hf(**settings):
    return dict(
        model_type='swinv2',
        image_size=256,
        patch_size=4,
        window_size=8,
        pretrained_window_sizes=[0, 0, 0, 0],
        **settings,
    )


def config_of_timm(architecture, **changed):
    return dict(architecture=architecture, pretrained_cfg=dict(tag='x'), model_args=changed)


def save_as(fmt, model, path):
    """Write a headless file of another library, in which no tensor records a window."""
    torch.save(from_backbone(headless_state(model), {}, FORMATS[fmt]), path)


@pytest.mark.parametrize(
    ('config', 'windows'),
    [
        (config_of_hf(), W8),
        (config_of_hf() | dict(window_size=16), W16),
        (config_of_hf() | dict(window_size=12, image_size=192), W12),
        (config_of_hf() | dict(window_size=16, pretrained_window_sizes=W12), W12),
        (config_of_hf() | dict(image_size=[128, 256]), [(8, 8), (8, 8), (8, 8), (4, 8)]),
        (config_of_hf(embed_dim=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8]), W8),
    ],
    ids=str,
)
def test_the_config_of_transformers_records_window_sizes(tmp_path, config, windows):
    save_as('hf', random_model(windows), tmp_path / 'pytorch_model.bin')
    (tmp_path / 'config.json').write_text(json.dumps(config))
    assert windows_of(load(tmp_path / 'pytorch_model.bin', 'auto')) == pairs(windows)
    with pytest.raises(CheckpointError, match=r'\(source: config\.json\)'):
        load(tmp_path / 'pytorch_model.bin', setting=7)


@pytest.fixture(scope='module')
def timm_tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp('timm') / 'pytorch_model.bin'
    save_as('timm', SwinTransformerV2('tiny'), path)
    return path


@pytest.mark.parametrize(
    ('config', 'windows'),
    [
        (config_of_timm('swinv2_tiny_window8_256'), W8),
        (config_of_timm('swinv2_tiny_window16_256'), W16),
        (dict(architecture='swinv2_tiny_window16_256'), W16),
        # Built at another size: the window of a stage shrinks to its map, or no longer does.
        (config_of_timm('swinv2_tiny_window16_256', img_size=[512, 512]), [16] * 4),
        (config_of_timm('swinv2_tiny_window8_256', window_size=16), W16),
        (config_of_timm('swinv2_tiny_window8_256', window_size=None, img_size=None), W8),
        (
            config_of_timm(
                'swinv2_tiny_window8_256', img_size=[512, 512], window_size=[[16, 16]] * 4
            ),
            [16] * 4,
        ),
        (config_of_timm('swinv2_tiny_window16_256', patch_size=2), [16] * 4),
        (config_of_timm('swinv2_tiny_window8_256', pretrained_window_sizes=[7] * 4), None),
        (config_of_timm('swinv2_base_window8_256'), None),  # of another architecture
        (config_of_timm('swinv2_unheard_of'), None),
    ],
    ids=str,
)
def test_the_config_of_timm_records_window_sizes(timm_tiny, tmp_path, config, windows):
    path = tmp_path / 'pytorch_model.bin'
    path.symlink_to(timm_tiny)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    found = open_checkpoint(str(path))
    assert found.pretrained_window_sizes == (dict(enumerate(pairs(windows))) if windows else {})
    assert found.window_source == ('config.json' if windows else '')


@pytest.mark.parametrize(
    'config',
    [
        config_of_timm('swinv2_base_window12to24_192to384', img_size=512),
        config_of_timm('swinv2_base_window12_192'),
    ],
    ids=lambda config: config['architecture'],
)
def test_the_window_of_the_pretraining_counts_in_transferred_releases_of_timm(tmp_path, config):
    (tmp_path / 'config.json').write_text(json.dumps(config))
    path = tmp_path / 'pytorch_model.bin'
    read = read_config_json(path, 'timm', ARCHITECTURES['base'])
    assert list(windows_from_config(read, 'timm', path).values()) == pairs(W12)


@pytest.mark.parametrize(
    'config',
    [
        dict(model_type='bert'),
        [],
        config_of_hf(embed_dim=96),
        config_of_hf(depths=[2, 2, 6, 2]),
        config_of_timm('swinv2_tiny_window8_256'),
    ],
    ids=str,
)
def test_the_config_of_another_model_is_ignored(tmp_path, config):
    (tmp_path / 'config.json').write_text(json.dumps(config))
    assert read_config_json(tmp_path / 'pytorch_model.bin', 'hf', SMALL_ARCH) == {}


@pytest.mark.parametrize('content', ['{', json.dumps(config_of_hf())])
def test_config_json_beside_a_file_of_a_format_without_one_is_ignored(tmp_path, content):
    torch.save(state_without_tables(random_model()), tmp_path / 'best.pth')
    (tmp_path / 'config.json').write_text(content)
    assert open_checkpoint(str(tmp_path / 'best.pth')).pretrained_window_sizes == {}


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('{', 'cannot be read'),
        ('[' * 100000, 'cannot be read'),
        ('{"model_type": "swinv2", "window_size": "8"}', 'records no valid'),
        ('{"model_type": "swinv2", "pretrained_window_sizes": [8]}', 'records no valid'),
        ('{"model_type": "swinv2", "window_size": 0}', 'records no valid'),
        ('{"model_type": "swinv2", "window_size": 8, "image_size": 8}', 'records no valid'),
        ('{"model_type": "swinv2", "window_size": true}', 'records no valid'),
        ('{"model_type": "swinv2", "patch_size": 0}', 'records no valid'),
        (
            '{"model_type": "swinv2", "pretrained_window_sizes": [-1, 8, 8, 8]}',
            'records no valid pretrained window sizes .*, allowed: one',
        ),
        ('{"model_type": "swinv2", "hidden_act": "relu"}', "has hidden_act='relu'; the backbone "),
        ('{"model_type": "swinv2", "layer_norm_eps": 1e-3}', 'has layer_norm_eps=0.001; the'),
    ],
)
def test_a_malformed_config_is_refused(tmp_path, config, message):
    path = tmp_path / 'pytorch_model.bin'
    save_as('hf', random_model(), path)
    (tmp_path / 'config.json').write_text(config)
    message = f'config.json {message}'
    assert_refused(path, CheckpointError, message, arch=SMALL_ARCH)


def test_hf_config_describes_the_model_and_is_read_again(tmp_path):
    state = headless_state(random_model(mlp_ratio=3.0, in_channels=1, patch_size=2))
    config = hf_config(state, {}, [(4, 4)] * 3 + [(2, 2)], window=8, image_size=64)
    expected = dict(
        architectures=['Swinv2Model'],
        embed_dim=16,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        mlp_ratio=3.0,
        num_channels=1,
        patch_size=2,
        image_size=64,
        window_size=8,
        pretrained_window_sizes=[4, 4, 4, 2],
    )
    assert {key: config[key] for key in expected} == expected
    assert 'id2label' not in config
    (tmp_path / 'config.json').write_text(json.dumps(config))
    path = tmp_path / 'pytorch_model.bin'
    read = read_config_json(path, 'hf', arch_of(state))
    assert windows_from_config(read, 'hf', Path(path)) == dict(enumerate(pairs([4, 4, 4, 2])))


def test_hf_config_of_a_classifier_has_labels():
    state = headless_state(random_model())
    head = {'head.weight': torch.ones(3, 128), 'head.bias': torch.ones(3)}
    config = hf_config(state, head, [(8, 8)] * 4, 8, 256)
    assert config['architectures'] == ['Swinv2ForImageClassification']
    assert config['id2label'] == {0: 'LABEL_0', 1: 'LABEL_1', 2: 'LABEL_2'}
    labels = {'0': 'a', '1': 'b', '2': 'c'}
    config = hf_config(state, head, [(8, 8)] * 4, 8, 256, labels)
    assert (config['id2label'], config['label2id']) == (labels, {'a': 0, 'b': 1, 'c': 2})
    config = hf_config(state, head, [(8, 8)] * 4, 8, 256, {'0': 'a'})  # of another classifier
    assert len(config['id2label']) == 3


def test_hf_config_refuses_windows_that_are_not_square():
    with pytest.raises(CheckpointError, match=r'no place for pretrained window sizes of \[\(4, 6'):
        hf_config(headless_state(random_model()), {}, [(4, 6)] * 4, 4, 64)
