"""`init_cfg=dict(type='Pretrained')`: what loads, what is said, what is refused."""

import functools
import http.server
import logging
import threading

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.checkpoints import CheckpointError
from tests.helpers.checkpoint_files import official_state, save_official
from tests.helpers.models import SMALL_ARCH, randomize_parameters


def build(checkpoint, **kwargs):
    return SwinTransformerV2(
        SMALL_ARCH, **kwargs, init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint))
    )


def source():
    return randomize_parameters(SwinTransformerV2(SMALL_ARCH))


@pytest.fixture
def log_lines():
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def assert_loaded(model, original, new=('norm0', 'norm1', 'norm2')):
    for key, value in model.state_dict().items():
        if not key.startswith(new):
            assert torch.equal(value, original.state_dict()[key]), key


@pytest.mark.parametrize('wrapper', ['model', 'state_dict', None])
def test_official_file(tmp_path, wrapper, log_lines):
    original, path = source(), tmp_path / 'official.pth'
    state = official_state(original)
    torch.save({wrapper: state, 'epoch': 300} if wrapper else state, path)
    model = build(path)
    model.init_weights()
    assert_loaded(model, original)
    assert torch.equal(model.norm0.weight, torch.ones(16))
    [line] = [line for line in log_lines if 'loaded' in line and 'parameters from' in line]
    count = len(model.state_dict()) - 6
    assert line == (
        f'SwinTransformerV2: loaded {count} parameters from {path} (official format); newly '
        'initialized: norm0, norm1, norm2; dropped: relative_coords_table (8), '
        'relative_position_index (8), attn_mask (4), head; pretrained windows: 8 (told by '
        'relative_coords_table)'
    )


def test_own_file_of_a_segmentor(tmp_path):
    original, path = source(), tmp_path / 'iter_100.pth'
    state = {f'backbone.{key}': value for key, value in original.state_dict().items()}
    torch.save({'state_dict': {**state, 'decode_head.conv.weight': torch.ones(3)}}, path)
    model = build(path)
    model.init_weights()
    assert_loaded(model, original, new=('nothing',))


def test_prefix_chooses_among_several_models(tmp_path):
    original, path = source(), tmp_path / 'two.pth'
    torch.save({f'teacher.{key}': value for key, value in official_state(original).items()}, path)
    model = build(path)
    model.init_cfg['prefix'] = 'teacher'
    model.init_weights()
    assert_loaded(model, original)
    model = build(path)
    model.init_cfg['prefix'] = 'student.'
    with pytest.raises(CheckpointError, match=r"no key starts with prefix='student\.'"):
        model.init_weights()


def test_stages_left_out_are_dropped_and_said(tmp_path, log_lines):
    original = source()
    model = build(save_official(original, tmp_path / 'official.pth'), out_indices=(0, 1))
    model.init_weights()
    assert_loaded(model, original, new=('norm0', 'norm1'))
    assert any(
        'layers.1 (3)' in line and 'layers.2 (' in line and 'norm3' in line for line in log_lines
    )


def test_inside_another_module(tmp_path):
    class Segmentor(BaseModule):
        def __init__(self, checkpoint):
            super().__init__()
            self.backbone = build(checkpoint)

    original = source()
    segmentor = Segmentor(save_official(original, tmp_path / 'official.pth'))
    segmentor.init_weights()
    assert_loaded(segmentor.backbone, original)


def test_other_initializers_run_first(tmp_path):
    original = source()
    model = build(save_official(original, tmp_path / 'official.pth'))
    model.init_cfg = [model.init_cfg, dict(type='Constant', layer='LayerNorm', val=7.0)]
    model.init_weights()
    assert_loaded(model, original)
    assert torch.equal(model.norm0.weight, torch.full((16,), 7.0))
    assert model.init_cfg[0]['type'] == 'Pretrained'


def test_half_precision_file_loads_into_float32(tmp_path):
    original, path = source(), tmp_path / 'half.pth'
    torch.save(
        {
            'model': {
                key: value.half() if value.is_floating_point() else value
                for key, value in official_state(original).items()
            }
        },
        path,
    )
    model = build(path)
    model.init_weights()
    assert model.patch_embed.proj.weight.dtype == torch.float32
    torch.testing.assert_close(
        model.patch_embed.proj.weight, original.patch_embed.proj.weight.half().float()
    )


@pytest.mark.parametrize('windows', [16, [16, 16, 16, 8], [12, 12, 12, 6], (6, 4)], ids=str)
@pytest.mark.parametrize('last_ran_with', [None, (24, 24)], ids=str)
def test_wrong_pretrained_windows_are_refused_and_the_right_named(tmp_path, windows, last_ran_with):
    trained = SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes=windows)
    torch.save({'model': official_state(trained, last_ran_with)}, tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match='trained with other windows') as caught:
        build(tmp_path / 'w.pth').init_weights()
    right = eval(str(caught.value).rpartition('pretrained_window_sizes=')[2])
    model = build(tmp_path / 'w.pth', pretrained_window_sizes=right)
    model.init_weights()
    assert_loaded(model, trained)
    assert [s.pretrained_window for s in model.layers] == [
        s.pretrained_window for s in trained.layers
    ]


@pytest.mark.parametrize(
    'table',
    [
        torch.zeros(15, 15),
        torch.zeros(1, 15, 15, 2),
        torch.full((1, 15, 15, 2), torch.nan),
        torch.full((1, 15, 15, 2), 1e6),
        [1.0, 2.0],
    ],
    ids=['2-D', 'zeros', 'NaN', 'huge', 'a list'],
)
def test_a_table_that_tells_no_window(tmp_path, table):
    state = official_state(source())
    state['layers.1.blocks.0.attn.relative_coords_table'] = table
    torch.save({'model': state}, tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=r'layers\.1\..*\.relative_coords_table') as caught:
        build(tmp_path / 'w.pth').init_weights()
    assert str(tmp_path / 'w.pth') in str(caught.value)


@pytest.mark.parametrize('cfg', [dict(checkpoin='x.pth'), dict(checkpoint='x.pth', strict=False)])
def test_misspelt_init_cfg(cfg):
    with pytest.raises(TypeError, match='unexpected keyword argument'):
        SwinTransformerV2(SMALL_ARCH, init_cfg=dict(type='Pretrained', **cfg)).init_weights()


# --- URLs -----------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine, and an empty torch.hub cache."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def copyfile(self, source, outputfile):
            whole = source.read()
            outputfile.write(whole[: len(whole) // 2] if 'cut' in self.path else whole)

    served = tmp_path / 'served'
    served.mkdir()
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    httpd = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Quiet, directory=served)
    )
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield served, f'http://127.0.0.1:{httpd.server_port}'
    httpd.shutdown()


def test_url_is_fetched_once(server, tmp_path):
    served, url = server
    original = source()
    save_official(original, served / 'swinv2.pth')
    for _ in range(2):
        model = build(f'{url}/swinv2.pth')
        model.init_weights()
        assert_loaded(model, original)
        (served / 'swinv2.pth').unlink(missing_ok=True)
    files = [p for p in (tmp_path / 'hub' / 'checkpoints').rglob('*') if p.is_file()]
    assert [p.name for p in files] == ['swinv2.pth']


def test_url_that_does_not_exist(server, tmp_path):
    with pytest.raises(ConnectionError, match=r'absent\.pth: could not be downloaded .*404'):
        build(f'{server[1]}/absent.pth').init_weights()
    assert not any((tmp_path / 'hub').rglob('*.pth'))


def test_files_of_one_name_are_not_confused(server):
    served, url = server
    for folder, seed in (('a', 1), ('b', 2)):
        (served / folder).mkdir()
        original = randomize_parameters(SwinTransformerV2(SMALL_ARCH), seed)
        save_official(original, served / folder / 'pytorch_model.bin')
        model = build(f'{url}/{folder}/pytorch_model.bin')
        model.init_weights()
        assert_loaded(model, original)


def test_download_that_is_cut_short_leaves_nothing(server, tmp_path):
    served, url = server
    save_official(source(), served / 'cut.pth')
    with pytest.raises(ConnectionError, match=r'cut\.pth: could not be downloaded \(.*cut short'):
        build(f'{url}/cut.pth').init_weights()
    assert not [p for p in (tmp_path / 'hub').rglob('*') if p.is_file()]


def test_hash_in_the_name_of_a_url_is_checked(server, tmp_path):
    served, url = server
    save_official(source(), served / 'swinv2-0123456f.pth')
    with pytest.raises(CheckpointError, match=r'its sha256 is .* its name says 0123456f.*Nothing'):
        build(f'{url}/swinv2-0123456f.pth').init_weights()
    assert not [p for p in (tmp_path / 'hub').rglob('*') if p.is_file()]


@pytest.mark.parametrize('init_type', ['Pretrained', 'mmengine.Pretrained', 'PretrainedInit'])
def test_every_spelling_of_pretrained_is_strict(tmp_path, init_type):
    torch.save({'model': {'x': torch.ones(2)}}, tmp_path / 'x.pth')
    model = build(tmp_path / 'x.pth')
    model.init_cfg['type'] = init_type
    with pytest.raises(CheckpointError, match='not a SwinV2 file'):
        model.init_weights()


def test_unknown_scheme():
    with pytest.raises(ValueError, match=r"got 'ftp://host/x\.pth', allowed: a path, an http"):
        build('ftp://host/x.pth').init_weights()


@pytest.mark.parametrize('wrapper', ['model_state_dict', 'model_ema', 'module', 'weights'])
def test_unusual_wrappers(tmp_path, wrapper):
    original = source()
    torch.save({wrapper: official_state(original), 'args': {'lr': 1}}, tmp_path / 'x.pth')
    model = build(tmp_path / 'x.pth')
    model.init_weights()
    assert_loaded(model, original)


def test_the_averaged_weights_beside_the_weights_are_left_and_named(tmp_path, log_lines):
    """timm trains with both; its own loader takes state_dict unless told otherwise."""
    original, averaged = source(), randomize_parameters(SwinTransformerV2(SMALL_ARCH), seed=5)
    torch.save(
        {
            'state_dict': official_state(original),
            'model': {'arch': 'a name'},
            'state_dict_ema': official_state(averaged),
        },
        tmp_path / 'x.pth',
    )
    model = build(tmp_path / 'x.pth')
    model.init_weights()
    assert_loaded(model, original)
    assert any('attn_mask (4), head, state_dict_ema; pretrained' in line for line in log_lines)


def test_marks_of_torchs_wrappers(tmp_path):
    original = source()
    state = {
        key.replace('blocks.0.', 'blocks.0._checkpoint_wrapped_module.'): value
        for key, value in original.state_dict().items()
    }
    torch.save(
        {f'module._orig_mod.{key}': value for key, value in state.items()}, tmp_path / 'x.pth'
    )
    model = build(tmp_path / 'x.pth')
    model.init_weights()
    assert_loaded(model, original, new=('nothing',))


def test_simmims_file(tmp_path):
    original = source()
    state = {
        f'encoder.{key.replace("cpb_mlp", "rpe_mlp")}': value
        for key, value in official_state(original).items()
        if not key.startswith('head')
    }
    torch.save(
        {
            'model': {
                **state,
                'encoder.mask_token': torch.zeros(1, 1, 16),
                'decoder.0.weight': torch.ones(2, 2),
                'decoder.0.bias': torch.ones(2),
            },
            'epoch': 799,
        },
        tmp_path / 'x.pth',
    )
    model = build(tmp_path / 'x.pth')
    model.init_weights()
    assert_loaded(model, original)
