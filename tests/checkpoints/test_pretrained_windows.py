"""pretrained_window_sizes: what files and what lies beside them tell, and what is made of it."""

import json
from pathlib import Path

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.arguments import ARCHITECTURES
from swinv2_backbone.checkpoints.errors import CheckpointError
from swinv2_backbone.checkpoints import from_backbone
from swinv2_backbone.checkpoints.files import write_checkpoint
from swinv2_backbone.checkpoints.formats import FORMATS
from swinv2_backbone.checkpoints.loading import open_checkpoint
from swinv2_backbone.checkpoints.pretrained_windows import windows_beside
from swinv2_backbone.checkpoints.releases import RELEASES
from tests.helpers.checkpoint_files import official_state, save_official
from tests.helpers.models import SMALL_ARCH, randomize_parameters

save_file = pytest.importorskip('safetensors.torch').save_file

W8, W16, W12 = [8] * 4, [16, 16, 16, 8], [12, 12, 12, 6]


def model(windows=W8, **kwargs):
    return randomize_parameters(
        SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes=windows, **kwargs)
    )


def load(path, setting='auto', **kwargs):
    loaded = SwinTransformerV2(
        SMALL_ARCH,
        pretrained_window_sizes=setting,
        init_cfg=dict(type='Pretrained', checkpoint=str(path)),
        **kwargs,
    )
    loaded.init_weights()
    return loaded


def windows_of(backbone):
    return [stage.pretrained_window for stage in backbone.layers]


def pairs(windows):
    return [(w, w) if isinstance(w, int) else w for w in windows]


def untold(trained):
    """An official state without its tables."""
    return {
        key: value
        for key, value in official_state(trained).items()
        if not key.endswith('relative_coords_table')
    }


@pytest.mark.parametrize('windows', [W8, W16, W12, [(6, 4)] * 4, [2, 3, 4, 5]], ids=str)
def test_auto_takes_them_from_the_tables(tmp_path, windows):
    trained = model(windows)
    loaded = load(save_official(trained, tmp_path / 'x.pth'))
    assert windows_of(loaded) == pairs(windows)
    x = torch.randn(1, 3, 64, 64)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            (loaded.layers[0](loaded.patch_embed(x)),),
            (trained.layers[0](trained.patch_embed(x)),),
            strict=True,
        )
    )


def test_auto_where_nothing_tells(tmp_path):
    torch.save(untold(model()), tmp_path / 'x.pth')
    with pytest.raises(
        CheckpointError,
        match=r'does not tell .* 8 for the w8 releases, '
        r'\[16, 16, 16, 8\] for w16, \[12, 12, 12, 6\] for w12',
    ) as caught:
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
    with pytest.raises(
        CheckpointError,
        match=r'other windows \(told by pretrained_window_sizes\) '
        r'than .* says \(16\): set pretrained_window_sizes=',
    ):
        load(tmp_path / 'x.pth', setting=16)


def test_what_mmengine_saves_tells_and_loads_with_its_histories(tmp_path):
    from mmengine.logging import HistoryBuffer
    from mmengine.runner.checkpoint import get_state_dict, save_checkpoint, weights_to_cpu

    holder = torch.nn.ModuleDict({'backbone': model(W16), 'decode_head': torch.nn.Linear(2, 2)})
    save_checkpoint(
        {
            'state_dict': weights_to_cpu(get_state_dict(holder)),
            'meta': {'epoch': 1},
            'message_hub': {'log_scalars': {'train/loss': HistoryBuffer([1.0], [1])}},
        },
        str(tmp_path / 'iter_1.pth'),
    )
    loaded = load(tmp_path / 'iter_1.pth')
    assert windows_of(loaded) == pairs(W16)
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.parameters(), holder['backbone'].parameters(), strict=True)
    )


@pytest.mark.parametrize('safetensors', [False, True])
def test_converted_files_tell(tmp_path, safetensors):
    write_checkpoint(
        untold(model(W12)), tmp_path / 'x', windows=pairs(W12), safetensors=safetensors
    )
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

    torch.save(
        {'state_dict': torch.nn.ModuleDict({'backbone': model(W12)}).state_dict()},
        tmp_path / 'x.pth',
    )
    holder = torch.nn.ModuleDict(
        {'backbone': SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes='auto')}
    )
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
    return dict(
        model_type='swinv2',
        image_size=256,
        patch_size=4,
        window_size=8,
        pretrained_window_sizes=[0, 0, 0, 0],
        **settings,
    )


def save_as(fmt, trained, path):
    """A backbone of ours as a headless file of another library, which tells no windows itself."""
    state = {
        key: value
        for key, value in trained.state_dict().items()
        if key.startswith(('patch_embed', 'layers', 'norm3'))
    }
    save_file(from_backbone(state, {}, FORMATS[fmt]), path)


@pytest.mark.parametrize(
    ('config', 'windows'),
    [
        (hf_config(), W8),
        (hf_config() | dict(window_size=16), W16),
        (hf_config() | dict(window_size=12, image_size=192), W12),
        (hf_config() | dict(window_size=16, pretrained_window_sizes=W12), W12),
        (hf_config() | dict(image_size=[128, 256]), [(8, 8), (8, 8), (8, 8), (4, 8)]),
        (hf_config(embed_dim=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8]), W8),
    ],
    ids=str,
)
def test_config_json_of_transformers_tells(tmp_path, config, windows):
    save_as('hf', model(windows), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps(config))
    assert windows_of(load(tmp_path / 'model.safetensors')) == pairs(windows)
    with pytest.raises(CheckpointError, match=r'told by config\.json'):
        load(tmp_path / 'model.safetensors', setting=7)


@pytest.fixture(scope='module')
def timm_tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp('timm') / 'model.safetensors'
    save_as('timm', SwinTransformerV2('tiny'), path)
    return path


def timm_config(architecture, **changed):
    return dict(architecture=architecture, pretrained_cfg=dict(tag='x'), model_args=changed)


@pytest.mark.parametrize(
    ('config', 'windows'),
    [
        (timm_config('swinv2_tiny_window8_256'), W8),
        (timm_config('swinv2_tiny_window16_256'), W16),
        (dict(architecture='swinv2_tiny_window16_256'), W16),
        # Built at another size: the window of a stage shrinks to its map, or no longer does.
        (timm_config('swinv2_tiny_window16_256', img_size=[512, 512]), [16] * 4),
        (timm_config('swinv2_tiny_window8_256', window_size=16), W16),
        (timm_config('swinv2_tiny_window8_256', window_size=None, img_size=None), W8),
        (
            timm_config('swinv2_tiny_window8_256', img_size=[512, 512], window_size=[[16, 16]] * 4),
            [16] * 4,
        ),
        (timm_config('swinv2_tiny_window16_256', patch_size=2), [16] * 4),
        (timm_config('swinv2_tiny_window8_256', pretrained_window_sizes=[7] * 4), None),
        (timm_config('swinv2_base_window8_256'), None),  # of another architecture
        (timm_config('swinv2_unheard_of'), None),
    ],
    ids=str,
)
def test_config_json_of_timm_tells(timm_tiny, config, windows):
    (timm_tiny.parent / 'config.json').write_text(json.dumps(config))
    told = open_checkpoint(str(timm_tiny)).windows
    assert told == (dict(enumerate(pairs(windows))) if windows else {})


def test_config_json_of_timms_transferred_releases():
    arch = ARCHITECTURES['base']
    for config in (
        timm_config('swinv2_base_window12to24_192to384', img_size=512),
        timm_config('swinv2_base_window12_192'),
    ):
        windows, told_by = windows_beside(Path('model.safetensors'), 'x', 'timm', arch, config)
        assert (list(windows.values()), told_by) == (pairs(W12), 'config.json')


@pytest.mark.parametrize(
    'config',
    [
        dict(model_type='bert'),
        [],
        hf_config(embed_dim=96),
        hf_config(depths=[2, 2, 6, 2]),
        timm_config('swinv2_tiny_window8_256'),
    ],
    ids=str,
)
def test_config_json_of_another_model_tells_nothing(tmp_path, config):
    save_as('hf', model(), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match='does not tell'):
        load(tmp_path / 'model.safetensors')
    assert windows_of(load(tmp_path / 'model.safetensors', setting=W16)) == pairs(W16)


@pytest.mark.parametrize('content', ['{', json.dumps(hf_config())])
def test_config_json_beside_a_file_that_has_none_is_not_looked_at(tmp_path, content):
    torch.save(untold(model()), tmp_path / 'best.pth')
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(CheckpointError, match='does not tell'):
        load(tmp_path / 'best.pth')
    assert windows_of(load(tmp_path / 'best.pth', setting=W16)) == pairs(W16)


def test_tables_count_for_more_than_a_name(tmp_path):
    trained = SwinTransformerV2('tiny', pretrained_window_sizes=W16)
    path = save_official(trained, tmp_path / 'swinv2_tiny_patch4_window8_256.pth')
    assert open_checkpoint(path).windows == dict(enumerate(pairs(W16)))


@pytest.mark.parametrize('release', RELEASES.values(), ids=RELEASES)
def test_names_of_known_releases_tell(release):
    source = release.url
    path = Path(source.rpartition('/')[2])
    for fmt, arch, told in (
        (release.format, release.arch, True),
        ('own', release.arch, False),
        (release.format, 'tiny' if release.arch != 'tiny' else 'base', False),
    ):
        windows, told_by = windows_beside(path, source, fmt, ARCHITECTURES[arch], {})
        assert windows == (dict(enumerate(release.windows)) if told else {})
        assert told_by == ('its name' if told else '')


def test_a_name_that_is_contradicted(tmp_path):
    path = tmp_path / 'swinv2_tiny_patch4_window16_256.pth'
    torch.save(untold(SwinTransformerV2('tiny')), path)
    wrong = SwinTransformerV2('tiny', init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    with pytest.raises(CheckpointError, match=r'told by its name.*=\[16, 16, 16, 8\]'):
        wrong.init_weights()
