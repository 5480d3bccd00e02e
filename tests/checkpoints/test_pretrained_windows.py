"""pretrained_window_sizes: the setting, where files record them, and how the two are reconciled."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.arguments import ARCHITECTURES
from swinv2_backbone.checkpoints import RELEASES, CheckpointError, load_into, open_checkpoint
from swinv2_backbone.checkpoints.files import write_checkpoint
from swinv2_backbone.checkpoints.pretrained_windows import (
    METADATA_KEY,
    format_pretrained_windows,
    parse_pretrained_windows,
    reconcile,
    window_size_from_tables,
    windows_from_metadata,
    windows_from_name,
    windows_from_tables,
    write_metadata,
)
from tests.helpers.checkpoint_files import (
    W8,
    W12,
    W16,
    assert_loaded,
    load,
    official_state,
    pairs,
    random_model,
    save_official,
    state_without_tables,
    windows_of,
)
from tests.helpers.models import SMALL_ARCH

# --- the setting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('value', 'parsed'),
    [
        (8, pairs(W8)),
        ((6, 4), [(6, 4)] * 4),
        (W12, pairs(W12)),
        ([16, (8, 4), 8, 4], [(16, 16), (8, 4), (8, 8), (4, 4)]),
        (None, [(7, 7)] * 4),
        ('auto', [None] * 4),
    ],
)
def test_every_form_of_the_setting_is_parsed(value, parsed):
    assert list(parse_pretrained_windows(value, [(7, 7)] * 4)) == parsed


@pytest.mark.parametrize(
    ('value', 'error', 'message'),
    [
        ('Auto', ValueError, "got 'Auto', allowed: 'auto', None"),
        (0, ValueError, 'got 0, allowed: at least 1. .*8 for w8, '),
        ([8, 8, 8, 0], ValueError, r'got \[8, 8, 8, 0\], allowed: at least 1'),
        ([8, 8, 8], ValueError, r'got \[8, 8, 8\], 3 entries, allowed'),
        (8.0, TypeError, r'got 8\.0 \(float\)'),
    ],
)
def test_other_values_of_the_setting_are_refused(value, error, message):
    with pytest.raises(error, match=f'pretrained_window_sizes: {message}'):
        parse_pretrained_windows(value, [(7, 7)] * 4)


@pytest.mark.parametrize(
    ('windows', 'setting'),
    [
        (pairs(W8), 8),
        (pairs(W16), W16),
        ([(6, 4)] * 4, [(6, 4)] * 4),
        ([(16, 16)] * 2, 16),  # of a backbone of two stages
        ([(16, 16), (8, 8)], [16, 8, 8, 8]),
    ],
)
def test_sizes_are_formatted_as_a_setting(windows, setting):
    assert format_pretrained_windows(windows) == setting
    assert list(parse_pretrained_windows(setting, ()))[: len(windows)] == windows


# --- reconcile ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('configured', 'recorded', 'result'),
    [
        (W16, W16, W16),
        (W16, [], W16),
        (W16, [16], W16),
        ([None] * 4, W12, W12),
        (W16[:2], W16, W16[:2]),  # of a backbone of two stages
    ],
    ids=str,
)
def test_the_setting_and_what_is_recorded_are_reconciled(configured, recorded, result):
    recorded = dict(enumerate(pairs(recorded)))
    configured = [None if size is None else (size, size) for size in configured]
    assert reconcile(configured, recorded, 'x.pth', 'y') == pairs(result)


def test_auto_requires_recorded_sizes():
    for recorded in ({}, {0: (8, 8)}):
        with pytest.raises(
            CheckpointError,
            match=r'x\.pth: records no pretrained window sizes.*Set them: 8 for w8, '
            r'\[16, 16, 16, 8\] for w16, \[12, 12, 12, 6\] for w12; `python -m swinv2_backbone`',
        ):
            reconcile([None] * 4, recorded, 'x.pth', '')


def test_a_contradiction_is_refused_and_the_right_setting_named():
    with pytest.raises(CheckpointError) as caught:
        reconcile(pairs(W8), dict(enumerate(pairs(W16))), 'x.pth', 'its name')
    assert str(caught.value) == (
        'x.pth: its position bias was trained with other windows (source: its name) than '
        'configured (8): set pretrained_window_sizes=[16, 16, 16, 8]'
    )


@pytest.mark.parametrize('windows', [16, W16, W12, (6, 4)], ids=str)
@pytest.mark.parametrize('last_ran_with', [None, (24, 24)], ids=str)
def test_the_setting_that_an_error_names_is_right(tmp_path, windows, last_ran_with):
    trained = random_model(windows)
    path = tmp_path / 'w.pth'
    torch.save({'model': official_state(trained, last_ran_with)}, path)
    with pytest.raises(CheckpointError, match='trained with other windows') as caught:
        load(path, setting=8)
    model = load(path, setting=eval(str(caught.value).rpartition('pretrained_window_sizes=')[2]))
    assert_loaded(model, trained)
    assert windows_of(model) == windows_of(trained)


def test_auto_before_any_checkpoint_is_refused():
    with pytest.raises(RuntimeError, match="pretrained_window_sizes='auto': no checkpoint"):
        SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes='auto')(torch.rand(1, 3, 32, 32))


# --- metadata of our own files --------------------------------------------------------------------


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_metadata_is_written_and_read(prefix):
    state = OrderedDict()
    write_metadata(state, pairs(W12), prefix)
    assert state._metadata == {prefix.rstrip('.'): {METADATA_KEY: tuple(pairs(W12))}}
    found = windows_from_metadata(state._metadata, prefix)
    assert found == dict(enumerate(pairs(W12)))
    assert windows_from_metadata({}, prefix) == {}


def test_sizes_that_are_not_set_are_not_recorded():
    state = OrderedDict()
    write_metadata(state, [None] * 4)
    assert not hasattr(state, '_metadata')
    write_metadata({}, pairs(W8))  # a plain dict, which has no metadata
    assert METADATA_KEY not in str(
        SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes='auto').state_dict()._metadata
    )


@pytest.mark.parametrize(
    'recorded', ['8', 8, {}, [], [8] * 4, [[0, 8]], [[8, 8], [8, 8, 8]], [[8, 8]] * 5, [[True, 8]]]
)
def test_malformed_metadata_is_refused(recorded):
    with pytest.raises(
        CheckpointError, match=r'its metadata has pretrained_window_sizes=.*allowed'
    ):
        windows_from_metadata({'': {METADATA_KEY: recorded}})


@pytest.mark.parametrize('windows', [W12, [(6, 4)] * 4], ids=str)
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_our_own_files_record_them(tmp_path, windows, prefix):
    trained = random_model(windows)
    holder = torch.nn.ModuleDict({'backbone': trained}) if prefix else trained
    torch.save({'state_dict': holder.state_dict()}, tmp_path / 'x.pth')
    assert windows_of(load(tmp_path / 'x.pth', 'auto')) == pairs(windows)
    with pytest.raises(
        CheckpointError, match=r'\(source: pretrained_window_sizes\) than configured \(16\): set '
    ):
        load(tmp_path / 'x.pth', setting=16)


def test_files_that_mmengine_saves_record_them_and_load_with_their_histories(tmp_path):
    from mmengine.logging import HistoryBuffer
    from mmengine.runner.checkpoint import get_state_dict, save_checkpoint, weights_to_cpu

    holder = torch.nn.ModuleDict(
        {'backbone': random_model(W16), 'decode_head': torch.nn.Linear(2, 2)}
    )
    save_checkpoint(
        {
            'state_dict': weights_to_cpu(get_state_dict(holder)),
            'meta': {'epoch': 1},
            'message_hub': {'log_scalars': {'train/loss': HistoryBuffer([1.0], [1])}},
        },
        str(tmp_path / 'iter_1.pth'),
    )
    loaded = load(tmp_path / 'iter_1.pth', 'auto')
    assert windows_of(loaded) == pairs(W16)
    assert_loaded(loaded, holder['backbone'], new=('nothing',))


@pytest.mark.parametrize('safetensors', [False, True])
def test_converted_files_record_them(tmp_path, safetensors):
    if safetensors:
        pytest.importorskip('safetensors')
    state = state_without_tables(random_model(W12))
    write_checkpoint(state, tmp_path / 'x', None, pairs(W12), safetensors)
    assert windows_of(load(tmp_path / 'x', 'auto')) == pairs(W12)


@pytest.mark.parametrize('strict', [True, False])
def test_load_state_dict_refuses_a_contradiction_and_fills_in_auto(strict):
    trained = random_model(W16)
    for setting in (W16, 'auto'):
        other = SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes=setting)
        other.load_state_dict(trained.state_dict(), strict=strict)
        assert windows_of(other) == pairs(W16)
    other = random_model(W8)
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(CheckpointError, match=r'set pretrained_window_sizes=\[16, 16, 16, 8\]'):
        other.load_state_dict(trained.state_dict(), strict=strict)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_mmengines_load_checkpoint_fills_in_auto(tmp_path):
    """What `tools/test.py` does: weights are loaded without init_weights()."""
    from mmengine.runner import load_checkpoint

    holder = torch.nn.ModuleDict({'backbone': random_model(W12)})
    torch.save({'state_dict': holder.state_dict()}, tmp_path / 'x.pth')
    holder = torch.nn.ModuleDict(
        {'backbone': SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes='auto')}
    )
    load_checkpoint(holder, str(tmp_path / 'x.pth'))
    assert windows_of(holder['backbone']) == pairs(W12)


def test_a_plain_dict_of_weights_records_nothing():
    other = random_model(W8)
    other.load_state_dict(dict(random_model(W16).state_dict()))
    assert windows_of(other) == pairs(W8)


def test_a_backbone_cut_out_of_a_larger_file_as_the_docs_say_is_checked(tmp_path):
    path = str(tmp_path / 'segmentor.pth')
    torch.save(torch.nn.ModuleDict({'backbone': random_model(W16)}).state_dict(), path)
    other, refused = random_model(W8), r'set pretrained_window_sizes=\[16, 16, 16, 8\]'
    with pytest.raises(CheckpointError, match=refused):
        load_into(other, open_checkpoint(path), path)
    state = torch.load(path, weights_only=True)
    consume_prefix_in_state_dict_if_present(state, 'backbone.')
    with pytest.raises(CheckpointError, match=refused):
        other.load_state_dict(state)


def test_stages_that_are_left_out_need_no_record(tmp_path):
    torch.save(random_model(W16, out_indices=(0, 1)).state_dict(), tmp_path / 'x.pth')
    loaded = load(tmp_path / 'x.pth', 'auto', out_indices=(0, 1))
    assert windows_of(loaded) == pairs(W16[:2])


# --- coordinate tables ----------------------------------------------------------------------------


@pytest.mark.parametrize('windows', [W8, W16, W12, [(6, 4)] * 4, [2, 3, 4, 5]], ids=str)
def test_tables_record_them_at_any_window(tmp_path, windows):
    trained = random_model(windows)
    for current in (None, (12, 20)):
        state = official_state(trained, current)
        assert windows_from_tables(state) == dict(enumerate(pairs(windows)))
        assert window_size_from_tables(state) == (current or pairs(windows)[0])
    assert windows_of(load(save_official(trained, tmp_path / 'x.pth'), 'auto')) == pairs(windows)


def test_the_table_of_a_window_of_one_token_records_nothing():
    state = {'layers.0.blocks.0.attn.relative_coords_table': torch.zeros(1, 1, 1, 2)}
    assert windows_from_tables(state) == {}


@pytest.mark.parametrize(
    ('table', 'message'),
    [
        (torch.zeros(15, 15), r'is torch.float32 \(15, 15\), allowed: floating point \(1, rows'),
        (torch.zeros(1, 0, 15, 2), r'is torch.float32 \(1, 0, 15, 2\), allowed'),
        (torch.ones(1, 15, 15, 2).long(), 'is torch.int64'),
        (torch.zeros(1, 15, 15, 2), 'holds no coordinates'),
        (torch.full((1, 15, 15, 2), torch.nan), 'holds no coordinates'),
        (torch.full((1, 15, 15, 2), 1e6), 'holds no coordinates'),
    ],
    ids=['2-D', 'no rows', 'integers', 'zeros', 'NaN', 'huge'],
)
def test_malformed_tables_are_refused(tmp_path, table, message):
    key = 'layers.1.blocks.0.attn.relative_coords_table'
    with pytest.raises(CheckpointError, match=f'{key} {message}'):
        windows_from_tables({key: table})
    torch.save({'model': official_state(random_model()) | {key: table}}, tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=f'w.pth: {key}'):
        load(tmp_path / 'w.pth')


# --- names of releases ----------------------------------------------------------------------------


@pytest.mark.parametrize('release', RELEASES.values(), ids=RELEASES)
def test_names_of_releases_give_them_for_the_right_format_and_architecture(release):
    source = release.url
    path = Path(source.rpartition('/')[2])
    sizes = dict(enumerate(release.pretrained_window_sizes))
    arch = ARCHITECTURES[release.arch]
    assert windows_from_name(source, path, release.format, arch) == sizes
    assert windows_from_name(source, path, 'swinv2_backbone', arch) == {}
    other = ARCHITECTURES['tiny' if release.arch != 'tiny' else 'base']
    assert windows_from_name(source, path, release.format, other) == {}


def test_tables_have_precedence_over_a_name(tmp_path):
    trained = SwinTransformerV2('tiny', pretrained_window_sizes=W16)
    path = save_official(trained, tmp_path / 'swinv2_tiny_patch4_window8_256.pth')
    assert open_checkpoint(path).pretrained_window_sizes == dict(enumerate(pairs(W16)))


def test_a_name_that_contradicts_the_setting_is_refused(tmp_path):
    path = tmp_path / 'swinv2_tiny_patch4_window16_256.pth'
    torch.save(state_without_tables(SwinTransformerV2('tiny')), path)
    with pytest.raises(CheckpointError, match=r'source: its name.*=\[16, 16, 16, 8\]'):
        load(path, setting=8, arch='tiny')
