"""pretrained_window_sizes: what files and what lies beside them tell, and what is made of it."""

import json

import pytest
import torch
from checkpoint_files import official_state, save_official
from conftest import SMALL_ARCH, enliven

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.checkpoint_files import write_checkpoint
from swinv2_backbone.errors import CheckpointError
from swinv2_backbone.releases import RELEASES

save_file = pytest.importorskip('safetensors.torch').save_file

W8, W16, W12 = [8] * 4, [16, 16, 16, 8], [12, 12, 12, 6]


def model(windows=W8, **kwargs):
    return enliven(SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes=windows, **kwargs))


def load(path, setting='auto', **kwargs):
    loaded = SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes=setting, init_cfg=dict(
        type='Pretrained', checkpoint=str(path)), **kwargs)
    loaded.init_weights()
    return loaded


def windows_of(backbone):
    return [stage.pretrained_window for stage in backbone.layers]


def pairs(windows):
    return [(w, w) if isinstance(w, int) else w for w in windows]


def untold(trained):
    """An official state without its tables."""
    return {key: value for key, value in official_state(trained).items()
            if not key.endswith('relative_coords_table')}


@pytest.mark.parametrize('windows', [W8, W16, W12, [(6, 4)] * 4, [2, 3, 4, 5]], ids=str)
def test_auto_takes_them_from_the_tables(tmp_path, windows):
    trained = model(windows)
    loaded = load(save_official(trained, tmp_path / 'x.pth'))
    assert windows_of(loaded) == pairs(windows)
    x = torch.randn(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(
        (loaded.layers[0](loaded.patch_embed(x)),), (trained.layers[0](trained.patch_embed(x)),),
        strict=True))


def test_auto_where_nothing_tells(tmp_path):
    torch.save(untold(model()), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'does not tell .* 8 for the w8 releases, '
                       r'\[16, 16, 16, 8\] for w16, \[12, 12, 12, 6\] for w12') as caught:
        load(tmp_path / 'x.pth')
    assert str(tmp_path / 'x.pth') in str(caught.value)
    assert windows_of(load(tmp_path / 'x.pth', setting=W16)) == pairs(W16)


def test_auto_before_any_checkpoint():
    with pytest.raises(RuntimeError, match="pretrained_window_sizes='auto': no checkpoint"):
        SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes='auto')(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="pretrained_window_sizes: got 'Auto', allowed: 'auto'"):
        SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes='Auto')


# --- our own files --------------------------------------------------------------------------------

@pytest.mark.parametrize('windows', [W12, [(6, 4)] * 4], ids=str)
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_our_own_files_tell(tmp_path, windows, prefix):
    trained = model(windows)
    holder = torch.nn.ModuleDict({'backbone': trained}) if prefix else trained
    torch.save({'state_dict': holder.state_dict()}, tmp_path / 'x.pth')
    assert windows_of(load(tmp_path / 'x.pth')) == pairs(windows)
    with pytest.raises(CheckpointError, match=r'other windows \(told by pretrained_window_sizes\) '
                       r'than .* says \(16\): set pretrained_window_sizes='):
        load(tmp_path / 'x.pth', setting=16)


def test_what_mmengine_saves_tells_and_loads_with_its_histories(tmp_path):
    from mmengine.logging import HistoryBuffer
    from mmengine.runner.checkpoint import get_state_dict, save_checkpoint, weights_to_cpu
    holder = torch.nn.ModuleDict({'backbone': model(W16), 'decode_head': torch.nn.Linear(2, 2)})
    save_checkpoint({
        'state_dict': weights_to_cpu(get_state_dict(holder)), 'meta': {'epoch': 1},
        'message_hub': {'log_scalars': {'train/loss': HistoryBuffer([1.0], [1])}},
    }, str(tmp_path / 'iter_1.pth'))
    loaded = load(tmp_path / 'iter_1.pth')
    assert windows_of(loaded) == pairs(W16)
    assert all(torch.equal(a, b) for a, b in zip(
        loaded.parameters(), holder['backbone'].parameters(), strict=True))


@pytest.mark.parametrize('safetensors', [False, True])
def test_converted_files_tell(tmp_path, safetensors):
    write_checkpoint(untold(model(W12)), tmp_path / 'x', windows=pairs(W12),
                     safetensors=safetensors)
    assert windows_of(load(tmp_path / 'x')) == pairs(W12)


@pytest.mark.parametrize('strict', [True, False])
def test_load_state_dict_refuses_another_unit_and_fills_in_auto(strict):
    trained = model(W16)
    for setting in (W16, 'auto'):
        other = SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes=setting)
        other.load_state_dict(trained.state_dict(), strict=strict)
        assert windows_of(other) == pairs(W16)
    other = model(W8)
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(CheckpointError, match=r'set pretrained_window_sizes=\[16, 16, 16, 8\]'):
        other.load_state_dict(model(W16).state_dict(), strict=strict)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_mmengines_load_checkpoint_fills_in_auto(tmp_path):
    """What `tools/test.py` does: weights come without init_weights()."""
    from mmengine.runner import load_checkpoint
    torch.save({'state_dict': torch.nn.ModuleDict({'backbone': model(W12)}).state_dict()},
               tmp_path / 'x.pth')
    holder = torch.nn.ModuleDict({'backbone': SwinTransformerV2(
        SMALL_ARCH, pretrained_window_sizes='auto')})
    load_checkpoint(holder, str(tmp_path / 'x.pth'))
    assert windows_of(holder['backbone']) == pairs(W12)


def test_a_plain_dict_of_weights_says_nothing():
    other = model(W8)
    other.load_state_dict(dict(model(W16).state_dict()))
    assert windows_of(other) == pairs(W8)


def test_stages_that_are_left_out_need_not_be_told(tmp_path):
    trained = model(W16, out_indices=(0, 1))
    torch.save(trained.state_dict(), tmp_path / 'x.pth')
    assert windows_of(load(tmp_path / 'x.pth', out_indices=(0, 1))) == pairs(W16[:2])


# --- what lies beside -----------------------------------------------------------------------------

def hf_config(**settings):
    return dict(model_type='swinv2', image_size=256, patch_size=4, window_size=8,
                pretrained_window_sizes=[0, 0, 0, 0], **settings)


@pytest.mark.parametrize(('config', 'windows'), [
    (hf_config(), W8),
    (hf_config() | dict(window_size=16), W16),
    (hf_config() | dict(window_size=12, image_size=192), W12),
    (hf_config() | dict(window_size=16, pretrained_window_sizes=W12), W12),
    (hf_config() | dict(image_size=[128, 256]), [(8, 8), (8, 8), (8, 8), (4, 8)]),
    (dict(architecture='swinv2_tiny_window8_256', pretrained_cfg=dict(tag='ms_in1k')), W8),
    (dict(architecture='swinv2_tiny_window16_256', pretrained_cfg=dict(tag='ms_in1k')), W16),
    (dict(architecture='swinv2_base_window12to24_192to384',
          pretrained_cfg=dict(tag='ms_in22k_ft_in1k')), W12),
    (dict(architecture='swinv2_base_window12to24_192to384', model_args=dict(img_size=512)), W12),
    (dict(architecture='swinv2_base_window12_192'), W12),
    # Fine-tuned at another size: the window of a stage shrinks to its map, or no longer does.
    (dict(architecture='swinv2_tiny_window16_256', model_args=dict(img_size=[512, 512])), [16] * 4),
    (dict(architecture='swinv2_tiny_window8_256', model_args=dict(window_size=16)), W16),
], ids=str)
def test_config_json_tells(tmp_path, config, windows):
    save_file(untold(model(windows)), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps(config))
    assert windows_of(load(tmp_path / 'model.safetensors')) == pairs(windows)
    with pytest.raises(CheckpointError, match=r'told by config\.json'):
        load(tmp_path / 'model.safetensors', setting=7)


@pytest.mark.parametrize('config', [
    dict(model_type='bert'), [], dict(architecture='swinv2_unheard_of'),
    dict(architecture='swinv2_tiny_window8_256',
         model_args=dict(pretrained_window_sizes=[7, 7, 7, 7]))], ids=str)
def test_config_json_that_does_not_tell(tmp_path, config):
    save_file(untold(model()), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match='does not tell'):
        load(tmp_path / 'model.safetensors')


def test_tables_count_for_more_than_what_lies_beside(tmp_path):
    save_official(model(W16), tmp_path / 'swinv2_tiny_patch4_window8_256.pth')
    (tmp_path / 'config.json').write_text(json.dumps(hf_config()))
    assert windows_of(load(tmp_path / 'swinv2_tiny_patch4_window8_256.pth')) == pairs(W16)


@pytest.mark.parametrize('release', [r for r in RELEASES.values() if r.format == 'official'],
                         ids=lambda release: release.name)
def test_names_of_known_releases_tell(tmp_path, release):
    path = tmp_path / f'{release.name}.pth'
    torch.save(untold(model()), path)
    assert windows_of(load(path)) == list(release.windows)
    with pytest.raises(CheckpointError, match='told by its name'):
        load(path, setting=7)
