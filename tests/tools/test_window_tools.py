"""The tools around windows: transfer measured on a model whose answer is known, and the plots."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers.models import SMALL_ARCH, randomize_parameters

pytest.importorskip('PIL')
pytest.importorskip('matplotlib')

from PIL import Image

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers.position_bias import position_bias
from tools.analysis_tools import plot_features, plot_position_bias
from tools.analysis_tools.window_transfer import PAPER
from tools.utils.config_checks import UserError
from tools.utils.images import center_crop, normalized, open_image
from tools.utils.other_biases import bias_table, interpolated_table, linear_bias, replaced_bias

ROOT = Path(__file__).parents[2]
COLOURS = [
    (250, 20, 20),
    (20, 240, 30),
    (10, 30, 250),
    (240, 240, 20),
    (128, 128, 128),
    (20, 230, 230),
    (5, 5, 5),
    (250, 250, 250),
]


def tool(name, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / f'tools/analysis_tools/{name}.py', *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


def succeed(name, *arguments):
    result = tool(name, *arguments)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def classifier_file(path, model, weight, bias):
    """A file as tools/train.py writes it for an ImageClassifier."""
    state = {
        f'backbone.{key}': value
        for key, value in model.state_dict().items()
        if not key.startswith(('norm0', 'norm1', 'norm2'))
    }
    state |= {'head.fc.weight': weight, 'head.fc.bias': bias}
    torch.save({'state_dict': state}, path)


@pytest.fixture(scope='module')
def known(tmp_path_factory):
    """Eight plain images, and a classifier that knows their colors at any window.

    Its blocks add nothing (their norms are 0), so what comes out of a plain image is the same at
    any size; the head is made to answer the nearest of eight such features.
    """
    folder = tmp_path_factory.mktemp('known')
    model = randomize_parameters(SwinTransformerV2(SMALL_ARCH)).eval()
    features = []
    with torch.no_grad():
        for stage in model.layers:
            for block in stage.blocks:
                for norm in (block.norm1, block.norm2):
                    norm.weight.zero_()
                    norm.bias.zero_()
        for index, color in enumerate(COLOURS):
            image = Image.new('RGB', (90 + index, 70), color)
            (folder / 'images' / f'class{index % 3}').mkdir(parents=True, exist_ok=True)
            image.save(folder / 'images' / f'class{index % 3}' / f'{index}.png')
            whole = normalized(image.resize((64, 64)))[None]
            features.append(model(whole)[-1].mean((2, 3))[0])
    weight = torch.stack(features)
    classifier_file(folder / 'known.pth', model, weight, -weight.square().sum(1) / 2)
    lines = [f'class{index % 3}/{index}.png {index}' for index in range(8)]
    (folder / 'right.txt').write_text('\n'.join(lines) + '\n')
    # Two of eight are wrong, and one of these is far from the truth: top-5 has the others.
    order = torch.cdist(weight, weight).argsort(1)
    lines[2] = f'class2/2.png {order[2, 1]}'
    lines[5] = f'class2/5.png {order[5, 7]}'
    (folder / 'wrong.txt').write_text('\n'.join(lines))
    return folder


def test_the_known_answer(known, tmp_path):
    out = tmp_path / 'new' / 'transfer.json'
    printed = succeed(
        'window_transfer',
        known / 'known.pth',
        '--images',
        known / 'images',
        '--labels',
        known / 'wrong.txt',
        '--windows',
        8,
        3,
        '--batch',
        3,
        '--pretrained-window-sizes',
        8,
        '--out',
        out,
    )
    found = json.loads(out.read_text())
    assert (found['images'], len(found['results'])) == (8, 6)
    for row in found['results']:
        assert (row['top1'], row['top5']) == (75, 87.5)
        assert row['agreement'] == 100
        assert row['drift'] == pytest.approx(0, abs=1e-5)
        assert row['size'] == 32 * row['window']
        assert row['seconds'] > 0
    assert [(row['bias'], row['window']) for row in found['results']] == [
        (bias, window) for bias in PAPER for window in (8, 3)
    ]
    assert '75.0' in printed
    assert 'paper' not in printed, 'these are not its classes'


def test_right_labels(known, tmp_path):
    succeed(
        'window_transfer',
        known / 'known.pth',
        '--images',
        known / 'images',
        '--labels',
        known / 'right.txt',
        '--windows',
        5,
        '--biases',
        'log CPB',
        '--pretrained-window-sizes',
        8,
        '--out',
        tmp_path / 'x.json',
    )
    (row,) = json.loads((tmp_path / 'x.json').read_text())['results']
    assert (row['top1'], row['top5']) == (100, 100)


def test_numbers_of_a_lively_model(tmp_path):
    """Agreement and drift are those of the model called by hand."""
    model = randomize_parameters(
        SwinTransformerV2(SMALL_ARCH, window_size=4, pretrained_window_sizes=4)
    ).eval()
    weight = torch.randn(7, 128)
    classifier_file(tmp_path / 'random_parameter.pth', model, weight, torch.zeros(7))
    (tmp_path / 'images').mkdir()
    features = {}
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 255, (6, 9, 3), np.uint8)
        image = Image.fromarray(pixels).resize((150, 120), Image.Resampling.BICUBIC)
        image.save(tmp_path / 'images' / f'{index}.png')
        for window in (4, 6):
            with torch.no_grad(), model.window_size_as(window):
                whole = normalized(center_crop(image, 32 * window))[None]
                features.setdefault(window, []).append(model(whole)[-1].mean((2, 3))[0])
    features = {window: torch.stack(each) for window, each in features.items()}
    succeed(
        'window_transfer',
        tmp_path / 'random_parameter.pth',
        '--images',
        tmp_path / 'images',
        '--windows',
        4,
        6,
        '--pretrained-window-sizes',
        4,
        '--out',
        tmp_path / 'x.json',
    )
    rows = {
        (row['bias'], row['window']): row
        for row in json.loads((tmp_path / 'x.json').read_text())['results']
    }
    answers = {window: (each @ weight.t()).argmax(1) for window, each in features.items()}
    row = rows['log CPB', 6]
    assert row['agreement'] == pytest.approx(100 * (answers[4] == answers[6]).double().mean())
    drift = (1 - F.cosine_similarity(features[6], features[4])).mean()
    assert row['drift'] == pytest.approx(drift.item(), abs=1e-5)
    assert drift > 1e-3
    for bias in PAPER:  # At home they are all the same.
        assert rows[bias, 4]['agreement'] == 100
        assert rows[bias, 4]['drift'] == pytest.approx(0, abs=1e-4)
    assert rows['bicubic table', 6]['drift'] != pytest.approx(row['drift'], rel=1e-2)
    assert 'top1' not in row


def test_other_biases():
    attention = randomize_parameters(SwinTransformerV2(SMALL_ARCH)).layers[1].blocks[0].attn
    network, home = attention.cpb_mlp, (8, 8)
    with torch.no_grad():
        own = position_bias(network, home, home)
        table = bias_table(network, home, home)
        assert table.shape == (2, 15, 15)
        assert torch.equal(table[:, 7, 7], own[:, 20, 20])
        assert torch.equal(table[:, 0, 14], own[:, 7, 56])  # Query top right, key bottom left.
        torch.testing.assert_close(interpolated_table(network, home, home), own)
        torch.testing.assert_close(linear_bias(network, home, home), own, rtol=0, atol=1e-3)
        for side in (12, 16):  # More offsets than the network has hidden channels.
            wide = linear_bias(network, (side, side), (side, side))
            torch.testing.assert_close(
                wide, position_bias(network, (side,) * 2, (side,) * 2), rtol=0, atol=1e-2
            )
        stretched = interpolated_table(network, (16, 16), home)
        # A stretched table gives the farthest neighbors what they had in the small window.
        torch.testing.assert_close(stretched[:, 0, -1], own[:, 0, -1], rtol=0, atol=0.5)
        larger = linear_bias(network, (12, 10), home)
        assert larger.shape == (2, 120, 120)
        assert larger.isfinite().all()
        assert ((larger >= 0) & (larger <= 16)).all()


def test_pictures_are_as_large_as_in_training(tmp_path):
    """Of w16 releases, say: windows of 16 16 16 8 on 256 pixels."""
    model = randomize_parameters(SwinTransformerV2(SMALL_ARCH))
    classifier_file(tmp_path / 'model.pth', model, torch.randn(7, 128), torch.zeros(7))
    (tmp_path / 'images').mkdir()
    Image.new('L', (40, 30), 77).save(tmp_path / 'images/gray.png')
    for windows, sides in (('4,4,4,2', [64, 96]), ('4', [128, 192])):
        succeed(
            'window_transfer',
            tmp_path / 'model.pth',
            '--images',
            tmp_path / 'images',
            '--windows',
            4,
            6,
            '--pretrained-window-sizes',
            windows,
            '--out',
            tmp_path / 'x.json',
        )
        rows = json.loads((tmp_path / 'x.json').read_text())['results']
        assert [row['size'] for row in rows] == 3 * sides
        assert [row['drift'] for row in rows if row['window'] == 4] == pytest.approx(
            [0] * 3, abs=1e-4
        )


@pytest.mark.parametrize('size', [(577, 600), (1107, 1600), (50, 2999), (9, 7), (256, 256)])
def test_the_crop_is_the_official_one(size):
    crop = center_crop(Image.new('RGB', size), 256)
    assert crop.size == (256, 256)
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    pixels[:, : size[0] // 2] = 255  # The left half: it stays the left half.
    halves = np.asarray(center_crop(Image.fromarray(pixels), 224))
    assert (halves[:, :90] == 255).all() or size[0] < 20
    assert halves[:, 150:].max() < 30 or size[0] < 20


def test_deep_pictures_are_refused(tmp_path):
    Image.fromarray(np.arange(256 * 16, dtype=np.uint16).reshape(64, 64)).save(tmp_path / 'x.png')
    with pytest.raises(UserError, match='has more than 8 bits a channel'):
        open_image(tmp_path / 'x.png')


def test_a_replaced_bias_leaves_no_trace():
    model, image = (
        randomize_parameters(SwinTransformerV2(SMALL_ARCH)).eval(),
        torch.randn(1, 3, 96, 96),
    )
    with torch.no_grad():
        before = model(image)
        with replaced_bias(model, interpolated_table), model.window_size_as(12):
            other = model(image)
        with pytest.raises(KeyboardInterrupt), replaced_bias(model, interpolated_table):
            raise KeyboardInterrupt
        assert all(map(torch.equal, model(image), before))
        with model.window_size_as(12):
            assert not torch.allclose(other[0], model(image)[0], atol=1e-3)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--images', 'nowhere'], "'nowhere' is no folder"),
        (['--images', '{empty}'], 'no images in it'),
        (
            ['--images', '{images}', '--labels', 'nothing.txt'],
            "labels 'nothing.txt' does not exist",
        ),
        (['--images', '{images}', '--labels', '{short}'], 'has no label for 7 of 8 images'),
        (
            ['--images', '{images}', '--labels', '{high}'],
            "line 1: got 'class0/0.png 8', allowed: a path",
        ),
        (['--images', '{images}', '--windows', '0'], "got '0', allowed: an integer of at least 1"),
    ],
)
def test_one_line_about_what_is_wrong(known, tmp_path, arguments, message):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'short.txt').write_text('class0/0.png 1\n')
    (tmp_path / 'high.txt').write_text('class0/0.png 8\n')
    places = dict(
        empty=tmp_path / 'empty',
        images=known / 'images',
        short=tmp_path / 'short.txt',
        high=tmp_path / 'high.txt',
    )
    result = tool(
        'window_transfer',
        known / 'known.pth',
        '--pretrained-window-sizes',
        8,
        '--out',
        tmp_path / 'x.json',
        *(argument.format(**places) for argument in arguments),
    )
    assert result.returncode
    assert message in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / 'x.json').exists()


# --- plots ----------------------------------------------------------------------------------------


def test_bias_plot(known, tmp_path):
    succeed(
        'plot_position_bias',
        known / 'known.pth',
        '--pretrained-window-sizes',
        8,
        '--window',
        '4',
        '6x3',
        '--layers',
        '1.0',
        '3.1',
        '--compare',
        known / 'known.pth',
        '--out',
        tmp_path / 'bias.png',
        tmp_path / 'bias.pdf',
    )
    assert Image.open(tmp_path / 'bias.png').width > 500
    assert (tmp_path / 'bias.pdf').read_bytes().startswith(b'%PDF')


def test_only_models_of_one_size_are_compared(known, tmp_path):
    other = SwinTransformerV2({**SMALL_ARCH, 'num_heads': (1, 2, 4, 4)})
    torch.save(other.state_dict(), tmp_path / 'other.pth')
    result = tool(
        'plot_position_bias',
        known / 'known.pth',
        '--pretrained-window-sizes',
        8,
        '--compare',
        tmp_path / 'other.pth',
        '--out',
        tmp_path / 'x.png',
    )
    assert '--compare: ' in result.stderr.splitlines()[-1]
    assert result.returncode


def test_what_the_bias_plot_shows():
    model = randomize_parameters(SwinTransformerV2(SMALL_ARCH)).eval()
    stage = model.layers[2]
    shown = plot_position_bias.center_bias(model, 2, 1, (5, 4))
    with torch.no_grad():
        bias = position_bias(stage.blocks[1].attn.cpb_mlp, (5, 4), (8, 8))
    assert shown.shape == (4, 5, 4)
    for row in range(5):
        for column in range(4):  # The center stands in row 2, column 2.
            assert torch.equal(shown[:, row, column], bias[:, 2 * 4 + 2, row * 4 + column])
    figure = plot_position_bias.draw(
        [
            plot_position_bias.Row('a', range(4), shown),
            plot_position_bias.Row('b', range(2), shown[:2] - 20),
        ],
        't',
    )
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(images) == 6
    assert len({image.get_clim() for image in images}) == 1, 'one scale for all'
    assert images[0].get_extent() == [-2.5, 1.5, 2.5, -2.5]


def test_feature_plot(known, tmp_path):
    image = known / 'images/class0/0.png'
    succeed(
        'plot_features',
        known / 'known.pth',
        image,
        '--pretrained-window-sizes',
        8,
        '--windows',
        '3',
        '8',
        '--size',
        100,
        '--out',
        tmp_path / 'features.png',
    )
    assert Image.open(tmp_path / 'features.png').width > 500


def test_colors_mean_the_same_in_all_maps():
    maps = [torch.randn(16, 6, 8), torch.randn(16, 6, 8)]
    maps[1][:, :3] = maps[0][:, 3:]
    first, second = plot_features.colors(maps)
    assert first.shape == (6, 8, 3)
    assert torch.equal(second[:3], first[3:])
    assert first.min() == 0
    assert second.max() == 1
    assert plot_features.distance(maps[0], maps[0]) == 0
    assert plot_features.distance(2 * maps[0], maps[0]) == pytest.approx(1)


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('plot_position_bias', ['--layers', '4.0'], '--layers: got 4.0; the checkpoint has blocks'),
        ('plot_position_bias', ['--layers', 'a'], "got 'a', allowed: STAGE.BLOCK"),
        ('plot_position_bias', ['--out', 'x.jpg'], "--out: got 'x.jpg', allowed: .png or .pdf"),
        ('plot_position_bias', ['--window', '8,8,8,8'], "--window: got '8,8,8,8', allowed: a side"),
        ('plot_features', ['nothing.png'], "image 'nothing.png' cannot be read"),
    ],
)
def test_plots_say_what_is_wrong(known, tmp_path, name, arguments, message):
    result = tool(name, known / 'known.pth', *arguments, '--pretrained-window-sizes', 8)
    assert result.returncode
    assert message in result.stderr.strip().splitlines()[-1]
