"""tools/model_converters/convert_checkpoint.py: there and back, bit for bit."""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.checkpoints.convert import Converted
from swinv2_backbone.checkpoints.errors import CheckpointError
from swinv2_backbone.checkpoints.architecture import mlp_ratio_of
from swinv2_backbone.checkpoints.files import read_checkpoint
from swinv2_backbone.checkpoints.formats import FORMATS
from swinv2_backbone.checkpoints.loading import open_checkpoint
from tests.helpers.models import randomize_parameters
from tests.parity.implementations import CLASSES
from tests.parity.recorded import ARCH, SIZE, WINDOW, load
from tools.model_converters import convert_checkpoint
from tools.utils.config_checks import UserError

ROOT = Path(__file__).parents[2]
pytest.importorskip('safetensors')

# The record that each format's classifier, and each format's headless model, must equal.
RECORDS = {
    ('mmpretrain', True): 'Mmpretrain',
    ('hf', True): 'Hf',
    ('timm', True): 'Timm',
    ('torchvision', True): 'Torchvision',
    ('hf', False): 'HfModel',
    ('timm_features', False): 'TimmFeatures',
}


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['convert_checkpoint.py', *map(str, args)])
    convert_checkpoint.main()


def source(folder, head=True, windows=WINDOW, norms=('norm3',)):
    """A file of ours: a backbone with its output norms, inside a classifier or alone."""
    model = randomize_parameters(
        SwinTransformerV2(ARCH, window_size=WINDOW, pretrained_window_sizes=windows)
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
    return folder / 'ours.pth', state


def arguments(name):
    size = ['--img-size', SIZE] if convert_checkpoint.keeps_geometry(FORMATS[name]) else []
    return ['--pretrained-window-sizes', WINDOW, '--to', name, *size]


@pytest.mark.parametrize('safetensors', [False, True], ids=['torch', 'safetensors'])
@pytest.mark.parametrize('head', [True, False], ids=['classifier', 'headless'])
@pytest.mark.parametrize('name', FORMATS)
def test_there_and_back_is_bit_exact(tmp_path, monkeypatch, name, head, safetensors):
    norms = () if name == 'timm_features' else ('norm3',)
    ours, state = source(tmp_path, head and name != 'timm_features', norms=norms)
    extra = ['--safetensors'] if safetensors else []
    there = tmp_path / ('there' if name == 'hf' else 'there.bin')
    run(monkeypatch, ours, there, *arguments(name), *extra)
    if name == 'hf':
        there = there / ('model.safetensors' if safetensors else 'pytorch_model.bin')
    written = read_checkpoint(there)
    written = written.get(FORMATS[name].wrapper, written)
    if recorded := RECORDS.get((name, head)):
        assert {key: list(value.shape) for key, value in written.items()} == load(recorded)[
            'shapes'
        ]
    run(monkeypatch, there, tmp_path / 'back.pth', '--to', 'swinv2_backbone')
    back = read_checkpoint(tmp_path / 'back.pth')['state_dict']
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(back[key], value), key
        assert back[key].dtype == value.dtype
    assert open_checkpoint(str(there)).windows == dict.fromkeys(range(4), (WINDOW, WINDOW))


def test_official_geometry(tmp_path, monkeypatch):
    """The official model saves masks too; held against a brute-force definition."""
    ours, _ = source(tmp_path)
    run(monkeypatch, ours, tmp_path / 'official.pth', *arguments('official'))
    state = read_checkpoint(tmp_path / 'official.pth')['model']
    masks = {key for key in state if key.endswith('attn_mask')}
    # Blocks that shift: the second of a stage whose map is larger than the window.
    assert masks == {'layers.0.blocks.1.attn_mask', 'layers.2.blocks.1.attn_mask'}
    side = SIZE // 4 // 4
    region = torch.zeros(side, side)
    for i, rows in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
        for j, columns in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
            region[rows, columns] = 3 * i + j
    windows = region.view(side // 4, 4, side // 4, 4).transpose(1, 2).reshape(-1, 16)
    wanted = (windows[:, None] != windows[:, :, None]) * -100.0
    assert torch.equal(state['layers.2.blocks.1.attn_mask'], wanted)
    coords = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing='ij'), -1)
    offset = coords.view(16, 1, 2) - coords.view(1, 16, 2) + 3
    index = state['layers.0.blocks.0.attn.relative_position_index']
    assert torch.equal(index, offset[..., 0] * 7 + offset[..., 1])
    table = state['layers.0.blocks.0.attn.relative_coords_table']
    assert table.shape == (1, 7, 7, 2)
    assert table[0, 0, 0].tolist() == pytest.approx([-math.log2(9) / 3] * 2)


def test_transferred_windows_keep_their_unit(tmp_path, monkeypatch):
    """Trained at 4, written for window 8: the tables say so, and loading finds 4 again."""
    ours, _ = source(tmp_path)
    run(
        monkeypatch,
        ours,
        tmp_path / 'w8.pth',
        '--to',
        'official',
        '--pretrained-window-sizes',
        4,
        '--window-size',
        8,
        '--img-size',
        256,
    )
    state = read_checkpoint(tmp_path / 'w8.pth')['model']
    assert state['layers.0.blocks.0.attn.relative_coords_table'].shape == (1, 15, 15, 2)
    assert open_checkpoint(str(tmp_path / 'w8.pth')).windows == dict.fromkeys(range(4), (4, 4))


def test_the_running_window_of_the_source_is_kept(tmp_path, monkeypatch):
    """Trained at 4, last run at 8 on 256 px: so does what is made of it, in every format."""
    ours, _ = source(tmp_path)
    run(
        monkeypatch,
        ours,
        tmp_path / 'w8.pth',
        '--to',
        'official',
        '--pretrained-window-sizes',
        4,
        '--window-size',
        8,
        '--img-size',
        256,
    )
    run(monkeypatch, tmp_path / 'w8.pth', tmp_path / 'hf', '--to', 'hf')
    config = json.loads((tmp_path / 'hf/config.json').read_text())
    assert (config['window_size'], config['image_size']) == (8, 256)
    assert config['pretrained_window_sizes'] == [4] * 4
    run(monkeypatch, tmp_path / 'hf/pytorch_model.bin', tmp_path / 'back.pth', '--to', 'official')
    first, second = (read_checkpoint(tmp_path / name)['model'] for name in ('w8.pth', 'back.pth'))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_running_window_of_a_known_release_is_kept():
    """timm's file of 12to16 tells by its name alone that it runs with 16 at 256 px."""
    args = argparse.Namespace(
        src='hf://timm/swinv2_base_window12to16_192to256.ms_in22k_ft_in1k',
        window_size=None,
        img_size=None,
    )
    converted = Converted('timm', '', {})
    trained = [(12, 12)] * 3 + [(6, 6)]
    assert convert_checkpoint.running(args, converted, trained) == (16, 256)
    args.src = 'best.pth'
    assert convert_checkpoint.running(args, converted, trained) == (12, 192)
    args.window_size = 24
    assert convert_checkpoint.running(args, converted, trained) == (24, 384)


def test_torchvisions_windows_do_not_shrink(tmp_path, monkeypatch):
    ours, _ = source(tmp_path, windows=[4, 4, 4, 2])
    run(
        monkeypatch,
        ours,
        tmp_path / 'tv.pth',
        '--to',
        'torchvision',
        '--pretrained-window-sizes',
        4,
        4,
        4,
        2,
    )
    state = read_checkpoint(tmp_path / 'tv.pth')
    table = state['features.7.0.attn.relative_coords_table']
    assert table.shape == (1, 7, 7, 2)  # of 4 tokens, in units of 2
    assert table.max().item() == pytest.approx(math.log2(1 + 8 * 3) / 3)
    assert open_checkpoint(str(tmp_path / 'tv.pth')).windows[3] == (2, 2)


def test_hf_folder_is_replaced_as_a_whole(tmp_path, monkeypatch):
    ours, _ = source(tmp_path)
    run(monkeypatch, ours, tmp_path / 'hf', *arguments('hf'), '--safetensors')
    with pytest.raises(UserError, match=r'hf/model\.safetensors exists; --force overwrites'):
        run(monkeypatch, ours, tmp_path / 'hf', *arguments('hf'))
    run(monkeypatch, ours, tmp_path / 'hf', *arguments('hf'), '--force')
    assert sorted(p.name for p in (tmp_path / 'hf').iterdir()) == [
        'config.json',
        'pytorch_model.bin',
    ]


def test_labels_are_carried_over(tmp_path, monkeypatch):
    ours, _ = source(tmp_path)
    run(monkeypatch, ours, tmp_path / 'a', *arguments('hf'))
    config = json.loads((tmp_path / 'a/config.json').read_text())
    config['id2label'] = {str(i): f'kind {i}' for i in range(CLASSES)}
    (tmp_path / 'a/config.json').write_text(json.dumps(config))
    run(monkeypatch, tmp_path / 'a/pytorch_model.bin', tmp_path / 'b', '--to', 'hf')
    assert json.loads((tmp_path / 'b/config.json').read_text())['id2label'] == config['id2label']


@pytest.mark.parametrize('ratio', [2.7, 0.9, 4.0, 3.3333])
def test_mlp_ratios_are_found_again(tmp_path, monkeypatch, ratio):
    model = SwinTransformerV2(ARCH, mlp_ratio=ratio)
    assert (
        SwinTransformerV2(ARCH, mlp_ratio=mlp_ratio_of(model.state_dict()))
        .state_dict()['layers.2.blocks.0.mlp.fc1.bias']
        .shape
        == model.layers[2].blocks[0].mlp.fc1.bias.shape
    )
    torch.save(model.state_dict(), tmp_path / 'ours.pth')
    run(
        monkeypatch,
        tmp_path / 'ours.pth',
        tmp_path / 'x.pth',
        '--to',
        'timm',
        '--drop',
        'norm0',
        'norm1',
        'norm2',
    )


def test_parts_of_a_model_are_refused(tmp_path, monkeypatch):
    torch.save(SwinTransformerV2(ARCH, out_indices=(0, 1)).state_dict(), tmp_path / 'part.pth')
    with pytest.raises(UserError, match=r'has not all four stages \(blocks: \(2, 1, 0, 0\)\)'):
        run(monkeypatch, tmp_path / 'part.pth', tmp_path / 'x.pth', '--to', 'timm')
    ours, state = source(tmp_path)
    del state['head.fc.bias']
    torch.save(state, ours)
    with pytest.raises(CheckpointError, match=r'its classifier has head\.weight alone'):
        run(monkeypatch, ours, tmp_path / 'x.pth', *arguments('timm'))


def test_hf_config(tmp_path, monkeypatch):
    ours, _ = source(tmp_path, windows=[4, 4, 4, 2])
    run(monkeypatch, ours, tmp_path / 'hf', '--to', 'hf', '--pretrained-window-sizes', 4, 4, 4, 2)
    config = json.loads((tmp_path / 'hf/config.json').read_text())
    assert (config['window_size'], config['image_size']) == (4, 64)
    assert config['pretrained_window_sizes'] == [4, 4, 4, 2]
    assert config['architectures'] == ['Swinv2ForImageClassification']
    assert len(config['id2label']) == CLASSES


def test_output_norms_that_have_no_place(tmp_path, monkeypatch):
    ours, _ = source(tmp_path, norms=('norm0', 'norm1', 'norm2', 'norm3'))
    with pytest.raises(CheckpointError, match=r'the timm format has no place for norm0\.weight, '):
        run(monkeypatch, ours, tmp_path / 'x.pth', *arguments('timm'))
    assert not (tmp_path / 'x.pth').exists()
    run(
        monkeypatch,
        ours,
        tmp_path / 'x.pth',
        *arguments('timm'),
        '--drop',
        'norm0',
        'norm1',
        'norm2',
    )
    run(monkeypatch, ours, tmp_path / 'y.pth', *arguments('mmpretrain'), '--drop', 'head')
    assert not any('head' in key for key in read_checkpoint(tmp_path / 'y.pth')['state_dict'])


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (['absent.pth', 'x.pth', '--to', 'timm'], FileNotFoundError, 'no such file'),
        (
            ['ours.pth', 'ours.pth', '--to', 'timm'],
            UserError,
            'ours.pth exists; --force overwrites',
        ),
        (['ours.pth', 'ours.pth', '--to', 'hf'], UserError, 'is a file; for hf, DST is a folder'),
        (['ours.pth', '.', '--to', 'timm'], UserError, 'is a folder; for timm, DST is a file'),
        (
            ['ours.pth', 'x.pth', '--to', 'official'],
            UserError,
            'does not tell the windows .* official format notes them: give --pretrained-window-sizes',
        ),
        (
            ['ours.pth', 'x.pth', '--to', 'official', '--pretrained-window-sizes', '4', '4', '4'],
            ValueError,
            r'--pretrained-window-sizes: got \[4, 4, 4\], 3 entries, allowed',
        ),
        (
            [
                'ours.pth',
                'x.pth',
                '--to',
                'official',
                '--pretrained-window-sizes',
                '4',
                '--img-size',
                '100',
            ],
            CheckpointError,
            r'do not divide .* choose other --window-size or --img-size',
        ),
        (['ours.pth', 'x.pth', '--to', 'timm', '--drop', 'norm0'], UserError, 'has no norm0'),
        (['ours.pth', 'x-0123abcd.pth', '--to', 'timm'], UserError, 'at its end say sha256'),
        (
            ['ours.pth', 'x.pth', '--to', 'timm', '--img-size', '256'],
            UserError,
            'the timm format keeps neither',
        ),
        (
            ['ours.pth', 'x', '--to', 'hf', '--pretrained-window-sizes', '4', '6'],
            CheckpointError,
            r'no place for pretrained windows of \[\(4, 6\)',
        ),
    ],
)
def test_mistakes(tmp_path, monkeypatch, arguments, error, message):
    source(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.rglob('*'))
    with pytest.raises(error, match=message):
        run(monkeypatch, *arguments)
    assert sorted(p.name for p in tmp_path.rglob('*')) == before


def test_unknown_keys_raise(tmp_path, monkeypatch):
    ours, state = source(tmp_path)
    torch.save({**state, 'backbone.layers.0.surprise': torch.ones(2)}, ours)
    with pytest.raises(CheckpointError, match=r'does not know: backbone\.layers\.0\.surprise'):
        run(monkeypatch, ours, tmp_path / 'x.pth', *arguments('timm'))


def test_an_incomplete_source_raises(tmp_path, monkeypatch):
    ours, state = source(tmp_path)
    del state['backbone.layers.2.blocks.0.mlp.fc1.bias']
    torch.save(state, ours)
    with pytest.raises(CheckpointError, match=r'lacks: backbone\.layers\.2\.blocks\.0\.mlp\.fc1'):
        run(monkeypatch, ours, tmp_path / 'x.pth', *arguments('timm'))


def test_as_a_command(tmp_path):
    ours, _ = source(tmp_path)
    command = [sys.executable, 'tools/model_converters/convert_checkpoint.py']
    done = subprocess.run(
        [*command, ours, tmp_path / 'x.pth', '--to', 'timm'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == (
        f'{ours} (swinv2_backbone) -> {tmp_path / "x.pth"} (timm): 119 tensors'
    )
    failed = subprocess.run(
        [*command, ours, tmp_path / 'y.pth', '--to', 'keras'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 2
    assert "invalid choice: 'keras'" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
