"""Conversion from file to file: there and back, bit for bit."""

import json

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.checkpoints import (
    FORMATS,
    CheckpointError,
    Converted,
    convert,
    open_checkpoint,
)
from swinv2_backbone.checkpoints.convert import find_sizes
from swinv2_backbone.checkpoints.files import read_checkpoint
from tests.checkpoints.test_formats import EXAMPLES
from tests.helpers.models import randomize_parameters
from tests.parity.implementations import CLASSES
from tests.parity.recorded import ARCH, SIZE, WINDOW, load

# The record that each format's classifier, and each format's headless model, must equal.
RECORDS = {
    ('mmpretrain', True): 'Mmpretrain',
    ('hf', True): 'Hf',
    ('timm', True): 'Timm',
    ('torchvision', True): 'Torchvision',
    ('hf', False): 'HfModel',
    ('timm_features', False): 'TimmFeatures',
}
INNER_NORMS = ['norm0', 'norm1', 'norm2']


def save_ours(folder, head=True, windows=WINDOW, norms=('norm3',), **kwargs):
    """A file of ours that records no window sizes: a backbone, inside a classifier or alone."""
    model = randomize_parameters(
        SwinTransformerV2(ARCH, window_size=WINDOW, pretrained_window_sizes=windows, **kwargs)
    )
    state = {
        key: value
        for key, value in model.state_dict().items()
        if not key.startswith('norm') or key.startswith(norms)
    }
    if head:
        state = {f'backbone.{key}': value for key, value in state.items()}
        state |= {'head.fc.weight': torch.randn(CLASSES, 64), 'head.fc.bias': torch.randn(CLASSES)}
    torch.save({'state_dict': state}, folder / 'ours.pth')
    return str(folder / 'ours.pth'), state


def settings_for(name):
    """The arguments with which the file of `save_ours` is converted to a format."""
    size = dict(img_size=SIZE) if FORMATS[name].is_for_one_size else {}
    return dict(to=name, pretrained_window_sizes=WINDOW, **size)


@pytest.mark.parametrize('safetensors', [False, True], ids=['torch', 'safetensors'])
@pytest.mark.parametrize('head', [True, False], ids=['classifier', 'headless'])
@pytest.mark.parametrize('name', FORMATS)
def test_there_and_back_is_bit_exact(tmp_path, name, head, safetensors):
    if safetensors:
        pytest.importorskip('safetensors')
    norms = ('norm3',) if EXAMPLES[name][3] else ()
    ours, state = save_ours(tmp_path, head and EXAMPLES[name][4] != '', norms=norms)
    there = tmp_path / ('there' if name == 'hf' else 'there.bin')
    file = convert(ours, there, safetensors=safetensors, **settings_for(name)).file
    written = read_checkpoint(file)
    written = written.get(FORMATS[name].wrapper, written)
    if recorded := RECORDS.get((name, head)):
        shapes = {key: list(value.shape) for key, value in written.items()}
        assert shapes == load(recorded)['shapes']
    back = convert(str(file), tmp_path / 'back.pth', 'swinv2_backbone').file
    back = read_checkpoint(back)['state_dict']
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(back[key], value), key
        assert back[key].dtype == value.dtype
    found = open_checkpoint(str(file)).pretrained_window_sizes
    assert found == dict.fromkeys(range(4), (WINDOW, WINDOW))


def test_the_summary_says_what_was_done(tmp_path):
    ours, _ = save_ours(tmp_path, norms=('norm0', 'norm3'))
    done = convert(ours, tmp_path / 'x.pth', 'timm', drop=['norm0'])
    assert (done.source_format, done.num_tensors) == ('swinv2_backbone', 119)
    assert str(done) == (
        f'{ours} (swinv2_backbone) -> {tmp_path / "x.pth"} (timm): 119 tensors; left out: '
        'norm0.bias, norm0.weight'
    )
    done = convert(ours, tmp_path / 'hf', drop=['norm0', 'head'], **settings_for('hf'))
    assert (done.window_size, done.image_size) == (WINDOW, SIZE)
    assert str(done) == (
        f'{ours} (swinv2_backbone) -> {tmp_path / "hf/pytorch_model.bin"} (hf): 129 tensors; for '
        'windows of 4 on images of 128 x 128; left out: head.bias, head.weight, norm0.bias, '
        'norm0.weight'
    )


# --- window and image size ------------------------------------------------------------------------


def test_pretrained_window_sizes_are_recorded_at_another_window(tmp_path):
    """Trained at 4, written for window 8: the tables record both."""
    ours, _ = save_ours(tmp_path)
    convert(
        ours, tmp_path / 'w8.pth', **settings_for('official') | dict(window_size=8, img_size=256)
    )
    state = read_checkpoint(tmp_path / 'w8.pth')['model']
    assert state['layers.0.blocks.0.attn.relative_coords_table'].shape == (1, 15, 15, 2)
    found = open_checkpoint(str(tmp_path / 'w8.pth')).pretrained_window_sizes
    assert found == dict.fromkeys(range(4), (4, 4))


def test_window_and_image_size_of_the_source_are_kept(tmp_path):
    """Trained at 4, last run at 8 on 256 px: so is what is made of it, in every format."""
    ours, _ = save_ours(tmp_path)
    convert(
        ours, tmp_path / 'w8.pth', **settings_for('official') | dict(window_size=8, img_size=256)
    )
    done = convert(str(tmp_path / 'w8.pth'), tmp_path / 'hf', 'hf')
    assert (done.window_size, done.image_size) == (8, 256)
    config = json.loads((tmp_path / 'hf/config.json').read_text())
    assert (config['window_size'], config['image_size']) == (8, 256)
    assert config['pretrained_window_sizes'] == [4] * 4
    convert(str(done.file), tmp_path / 'back.pth', 'official')
    first, second = (read_checkpoint(tmp_path / name)['model'] for name in ('w8.pth', 'back.pth'))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize(
    ('source', 'window_size', 'expected'),
    [
        # timm's file of 12to16 shows by its name alone that it runs with 16 at 256 px.
        ('hf://timm/swinv2_base_window12to16_192to256.ms_in22k_ft_in1k', None, (16, 256)),
        ('best.pth', None, (12, 192)),
        ('best.pth', 24, (24, 384)),
    ],
)
def test_sizes_follow_from_the_release_or_the_pretrained_window(source, window_size, expected):
    pretrained = [(12, 12)] * 3 + [(6, 6)]
    converted = Converted('timm', '', {})
    assert find_sizes(window_size, None, converted, source, pretrained) == expected


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(window_size=[8, 4]), r'window_size: x runs with \[8, 4\]; give one integer'),
        (
            dict(image_size=[64, 128]),
            r'img_size: x runs on images of \[64, 128\]; give one integer',
        ),
    ],
)
def test_sizes_that_are_not_square_must_be_given(config, message):
    converted = Converted('hf', '', {}, config=config)
    with pytest.raises(ValueError, match=message):
        find_sizes(None, None, converted, 'x', [(8, 8)] * 4)
    assert find_sizes(8, 256, converted, 'x', [(8, 8)] * 4) == (8, 256)


# --- config.json ----------------------------------------------------------------------------------


def test_an_hf_folder_has_a_config(tmp_path):
    ours, _ = save_ours(tmp_path, windows=[4, 4, 4, 2])
    convert(ours, tmp_path / 'hf', 'hf', pretrained_window_sizes=[4, 4, 4, 2])
    config = json.loads((tmp_path / 'hf/config.json').read_text())
    assert (config['window_size'], config['image_size']) == (4, 64)
    assert config['pretrained_window_sizes'] == [4, 4, 4, 2]
    assert config['architectures'] == ['Swinv2ForImageClassification']
    assert len(config['id2label']) == CLASSES


def test_an_hf_folder_is_replaced_completely(tmp_path):
    pytest.importorskip('safetensors')
    ours, _ = save_ours(tmp_path)
    convert(ours, tmp_path / 'hf', safetensors=True, **settings_for('hf'))
    with pytest.raises(ValueError, match=r'hf/model\.safetensors exists; force overwrites'):
        convert(ours, tmp_path / 'hf', **settings_for('hf'))
    convert(ours, tmp_path / 'hf', force=True, **settings_for('hf'))
    names = sorted(p.name for p in (tmp_path / 'hf').iterdir())
    assert names == ['config.json', 'pytorch_model.bin']


def test_labels_are_carried_over(tmp_path):
    ours, _ = save_ours(tmp_path)
    first = convert(ours, tmp_path / 'a', **settings_for('hf')).file
    config = json.loads((tmp_path / 'a/config.json').read_text())
    config['id2label'] = {str(i): f'class {i}' for i in range(CLASSES)}
    (tmp_path / 'a/config.json').write_text(json.dumps(config))
    convert(str(first), tmp_path / 'b', 'hf')
    assert json.loads((tmp_path / 'b/config.json').read_text())['id2label'] == config['id2label']


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize('ratio', [2.7, 0.9, 4.0, 3.3333])
def test_weights_of_any_mlp_ratio_are_converted(tmp_path, ratio):
    ours, state = save_ours(tmp_path, head=False, mlp_ratio=ratio)
    done = convert(ours, tmp_path / 'x.pth', 'timm')
    assert done.num_tensors == len(state)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(surprise=(2,)), r'does not have: backbone\.layers\.0\.surprise'),
        ({'blocks.0.mlp.fc1.bias': None}, r'lacks: backbone\.layers\.0\.blocks\.0\.mlp\.fc1'),
        ({'blocks.0.mlp.fc1.bias': (7,)}, r'shapes differ: .*fc1\.bias \(7,\) \(backbone: \(32,\)'),
        ({'blocks.0.attn.proj.weight': (8, 9)}, r'shapes differ: .*proj\.weight \(8, 9\)'),
        ({'blocks.7.mlp.fc1.bias': (32,)}, r'lacks: backbone\.layers\.0\.blocks\.2'),
    ],
    ids=lambda value: str(value)[:30],
)
def test_weights_that_are_not_a_backbone_are_refused(tmp_path, change, message):
    ours, state = save_ours(tmp_path)
    for name, shape in change.items():
        key = f'backbone.layers.0.{name}'
        state.pop(key, None)
        if shape:
            state[key] = torch.ones(shape)
    torch.save(state, ours)
    with pytest.raises(CheckpointError, match=message):
        convert(ours, tmp_path / 'x.pth', 'timm')
    assert not (tmp_path / 'x.pth').exists()


def test_parts_of_a_model_are_refused(tmp_path):
    torch.save(SwinTransformerV2(ARCH, out_indices=(0, 1)).state_dict(), tmp_path / 'part.pth')
    with pytest.raises(
        CheckpointError,
        match=r'part\.pth .* not all four stages are there \(blocks: \(2, 1, 0, 0\)\)',
    ):
        convert(str(tmp_path / 'part.pth'), tmp_path / 'x.pth', 'timm')
    ours, state = save_ours(tmp_path)
    del state['head.fc.bias']
    torch.save(state, ours)
    with pytest.raises(CheckpointError, match=r'its classifier has only head\.weight'):
        convert(ours, tmp_path / 'x.pth', 'timm')


def test_parts_without_a_place_are_left_out_on_request(tmp_path):
    ours, _ = save_ours(tmp_path, norms=('norm0', 'norm1', 'norm2', 'norm3'))
    with pytest.raises(CheckpointError, match=r'the timm format has no place for norm0\.weight, '):
        convert(ours, tmp_path / 'x.pth', 'timm')
    assert not (tmp_path / 'x.pth').exists()
    convert(ours, tmp_path / 'x.pth', 'timm', drop=INNER_NORMS)
    assert not any('norm0' in key for key in read_checkpoint(tmp_path / 'x.pth'))
    convert(ours, tmp_path / 'y.pth', drop=['head'], **settings_for('mmpretrain'))
    assert not any('head' in key for key in read_checkpoint(tmp_path / 'y.pth')['state_dict'])


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (dict(source='absent.pth'), FileNotFoundError, 'no such file'),
        (dict(to='keras'), ValueError, "to: got 'keras', allowed: swinv2_backbone, official"),
        (dict(destination='ours.pth'), ValueError, 'destination: ours.pth exists; force'),
        (dict(destination='ours.pth', to='hf'), ValueError, 'is a file, allowed for hf: a folder'),
        (dict(destination='.'), ValueError, 'destination: . is a folder, allowed for timm: a file'),
        (dict(destination='x-0123abcd.pth'), ValueError, 'destination: .* digits of a sha256'),
        (
            dict(to='official'),
            ValueError,
            'pretrained_window_sizes: ours.pth records none, .* official format',
        ),
        (
            dict(to='official', pretrained_window_sizes=[4, 4, 4]),
            ValueError,
            r'pretrained_window_sizes: got \[4, 4, 4\], 3 entries, allowed',
        ),
        (
            dict(to='official', pretrained_window_sizes=4, img_size=100),
            CheckpointError,
            'do not divide .* choose another window_size or img_size',
        ),
        (
            dict(to='hf', pretrained_window_sizes=[4, 6]),
            CheckpointError,
            r'no place for pretrained window sizes of \[\(4, 6\)',
        ),
        (dict(drop=['norm0']), ValueError, 'drop: ours.pth has no norm0'),
        (dict(drop=['norm4']), ValueError, r"drop: got \['norm4'\], allowed: a list of norm0"),
        (dict(drop='norm0'), ValueError, "drop: got 'norm0', allowed: a list of norm0"),
        (dict(img_size=256), ValueError, 'img_size: got 256, but a file of the timm format has'),
        (dict(to='hf', window_size=0), ValueError, 'window_size: got 0, allowed: an integer of'),
        (dict(to='hf', img_size=8.5), TypeError, 'img_size: got 8.5'),
    ],
)
def test_arguments_that_are_not_allowed_are_refused_and_nothing_is_written(
    tmp_path, monkeypatch, arguments, error, message
):
    save_ours(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.rglob('*'))
    with pytest.raises(error, match=message):
        convert(**dict(source='ours.pth', destination='x.pth', to='timm') | arguments)
    assert sorted(p.name for p in tmp_path.rglob('*')) == before


def test_sizes_that_contradict_the_source_are_refused(tmp_path):
    ours, _ = save_ours(tmp_path)
    convert(ours, tmp_path / 'w4.pth', **settings_for('official'))
    with pytest.raises(CheckpointError, match='set pretrained_window_sizes=4'):
        convert(str(tmp_path / 'w4.pth'), tmp_path / 'x', 'timm', pretrained_window_sizes=8)
