"""tools/analysis_tools/window_transfer.py, on models whose results are known."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers.classifier import save_classifier
from tests.helpers.models import SMALL_ARCH, randomize_parameters
from tests.helpers.scripts import call, error_line

Image = pytest.importorskip('PIL.Image')

from swinv2_backbone import SwinTransformerV2
from tools.analysis_tools import window_transfer
from tools.analysis_tools.window_transfer import PAPER
from tools.utils.images import center_crop, to_tensor

# What rounding may add to a cosine distance of float32 features.
ROUNDING = 100 * torch.finfo(torch.float32).eps


@pytest.fixture
def measure(tmp_path):
    """Runs the script and returns its rows."""

    def run(checkpoint, images, *options):
        out = tmp_path / 'new' / 'transfer.json'
        arguments = checkpoint, '--images', images, '--out', out, *options
        call(window_transfer.main, *arguments)
        written = json.loads(out.read_text())
        assert written['images'] == str(images)
        assert written['count'] == len(list(images.rglob('*.png')))
        return written['results']

    return run


def test_known_accuracy(known, measure, capsys):
    options = '--labels', known.wrong_labels, '--windows', 8, 3, '--batch', 3
    rows = measure(known.checkpoint, known.images, *options, '--pretrained-window-sizes', 8)
    for row in rows:
        assert (row['top1'], row['top5']) == (75, 87.5)
        assert row['agreement'] == 100
        assert row['drift'] == pytest.approx(0, abs=ROUNDING)
        assert row['size'] == 32 * row['window']
        assert row['seconds'] > 0
    assert [(row['bias'], row['window']) for row in rows] == [
        (bias, window) for bias in PAPER for window in (8, 3)
    ]
    lines = capsys.readouterr().out.splitlines()
    lines = lines[[line.startswith('bias') for line in lines].index(True) :]
    header, first = lines[:2]
    columns = ['bias', 'window', 'pixels', 'top-1', 'top-5', 'agreement', 'drift', 's/image']
    assert header.split() == columns, "the paper's numbers are of other classes"
    assert first.split()[:6] == ['log', 'CPB', '8', '256', '75.0', '87.5']


def test_right_labels(known, measure):
    options = '--labels', known.labels, '--windows', 5, '--biases', 'log CPB'
    (row,) = measure(known.checkpoint, known.images, *options, '--pretrained-window-sizes', 8)
    assert (row['top1'], row['top5']) == (100, 100)


def test_agreement_and_drift_equal_those_computed_by_hand(tmp_path, measure):
    model = SwinTransformerV2(SMALL_ARCH, window_size=4, pretrained_window_sizes=4)
    model, weight = randomize_parameters(model).eval(), torch.randn(7, 128)
    save_classifier(tmp_path / 'random.pth', model, weight, torch.zeros(7))
    (tmp_path / 'images').mkdir()
    features = {4: [], 6: []}
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 255, (6, 9, 3), np.uint8)
        image = Image.fromarray(pixels).resize((150, 120), Image.Resampling.BICUBIC)
        image.save(tmp_path / 'images' / f'{index}.png')
        for window, found in features.items():
            with torch.no_grad(), model.window_size_as(window):
                cropped = to_tensor(center_crop(image, 32 * window))[None]
                found.append(model(cropped)[-1].mean((2, 3))[0])
    features = {window: torch.stack(found) for window, found in features.items()}
    options = '--windows', 4, 6, '--pretrained-window-sizes', 4
    rows = measure(tmp_path / 'random.pth', tmp_path / 'images', *options)
    rows = {(row['bias'], row['window']): row for row in rows}
    classes = {window: (each @ weight.t()).argmax(1) for window, each in features.items()}
    row = rows['log CPB', 6]
    assert row['agreement'] == pytest.approx(100 * (classes[4] == classes[6]).double().mean())
    drift = (1 - F.cosine_similarity(features[6], features[4])).mean()
    assert row['drift'] == pytest.approx(drift.item(), abs=ROUNDING)
    assert drift > 1e-3
    for bias in PAPER:  # At the pretrained window they are all the same.
        assert rows[bias, 4]['agreement'] == 100
        assert rows[bias, 4]['drift'] == pytest.approx(0, abs=ROUNDING)
    assert rows['bicubic table', 6]['drift'] != pytest.approx(row['drift'], rel=1e-2)
    assert 'top1' not in row


@pytest.mark.parametrize(('windows', 'sizes'), [('4,4,4,2', [64, 96]), ('4', [128, 192])])
def test_images_are_as_large_as_in_training(tmp_path, measure, windows, sizes):
    """The first case is that of the w16 releases: windows of 16, 16, 16, 8 on 256 pixels."""
    model = randomize_parameters(SwinTransformerV2(SMALL_ARCH))
    save_classifier(tmp_path / 'model.pth', model, torch.randn(7, 128), torch.zeros(7))
    (tmp_path / 'images').mkdir()
    Image.new('L', (40, 30), 77).save(tmp_path / 'images/gray.png')
    options = '--windows', 4, 6, '--pretrained-window-sizes', windows
    rows = measure(tmp_path / 'model.pth', tmp_path / 'images', *options)
    assert [row['size'] for row in rows] == 3 * sizes
    own = [row['drift'] for row in rows if row['window'] == 4]
    assert own == pytest.approx([0] * 3, abs=ROUNDING)


MISTAKES = {
    'no folder': (['--images', 'nowhere'], "folder 'nowhere' does not exist"),
    'no images': (['--images', '{tmp_path}/empty'], 'no images in it'),
    'no labels': (
        ['--images', '{images}', '--labels', 'x.txt'],
        "labels 'x.txt' does not exist",
    ),
    'too few labels': (
        ['--images', '{images}', '--labels', '{tmp_path}/short.txt'],
        'has no label for 7 of 8 images',
    ),
    'no such class': (
        ['--images', '{images}', '--labels', '{tmp_path}/high.txt'],
        "line 1: got 'class0/0.png 8', allowed: a path",
    ),
    'no window': (
        ['--images', '{images}', '--windows', '0'],
        "got '0', allowed: an integer of at least 1",
    ),
    'no device': (['--images', '{images}', '--device', 'gpu'], "--device: got 'gpu': "),
    'output that is a folder': (
        ['--images', '{images}', '--out', '{tmp_path}'],
        'a folder; allowed: a file',
    ),
    'windows that are no squares': (
        ['--images', '{images}', '--pretrained-window-sizes', '8x4'],
        'pretrained window sizes: got [(8, 4), ',
    ),
}  # fmt: skip


@pytest.mark.parametrize(('options', 'message'), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_in_one_line(known, tmp_path, capsys, options, message):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'short.txt').write_text('class0/0.png 1\n')
    (tmp_path / 'high.txt').write_text('class0/0.png 8\n')
    options = [option.format(tmp_path=tmp_path, images=known.images) for option in options]
    out = tmp_path / 'x.json'
    arguments = known.checkpoint, '--pretrained-window-sizes', 8, '--out', out, *options
    assert message in error_line(capsys, window_transfer.main, *arguments)
    assert not out.exists()
