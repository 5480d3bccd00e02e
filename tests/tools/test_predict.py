"""tools/predict.py: images, folders and videos, whole and in tiles."""

import json
import shutil
import struct
from zlib import crc32

import numpy as np
import pytest
import torch

from tests.helpers.scripts import ROOT, call, error_line, succeed

for needed in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(needed)

import cv2
from pycocotools.coco import COCO

from tools import predict


def options(tasks, task, out):
    files = '--config', tasks.configs[task], '--checkpoint', tasks.checkpoints[task]
    return *files, '--out-dir', out


@pytest.fixture
def large(tmp_path):
    """An image of noise, 150 x 200."""
    path = tmp_path / 'large.png'
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


def test_a_folder_of_images_gets_label_maps_and_counts(tasks, tmp_path):
    folder, out = tmp_path / 'in', tmp_path / 'out'
    images = sorted((tasks.data / 'images/val').iterdir())[:2]
    (folder / 'sub').mkdir(parents=True)
    shutil.copy(images[0], folder / 'a.png')
    cv2.imwrite(str(folder / 'sub/b.jpg'), cv2.imread(str(images[1]))[:40])
    call(predict.main, folder, *options(tasks, 'segmentation', out))
    found = json.loads((out / 'segmentation.json').read_text())['images']
    assert [each['file_name'] for each in found] == ['a.png', 'sub/b.jpg']
    assert [(each['height'], each['width']) for each in found] == [(64, 64), (40, 64)]
    for each, drawn in zip(found, ('a.png', 'sub/b.jpg.png'), strict=True):
        labels = cv2.imread(str(out / each['label_map']), cv2.IMREAD_UNCHANGED)
        counts = np.bincount(labels.ravel(), minlength=5).tolist()
        assert list(each['pixels'].values()) == counts
        assert list(each['pixels'])[:2] == ['background', 'circle']
        assert cv2.imread(str(out / 'drawn' / drawn)).shape[:2] == labels.shape


def test_label_maps_are_those_of_a_test(tasks, tmp_path):
    """tools/test.py --out writes them, too."""
    from tools import test

    config, checkpoint = tasks.configs['segmentation'], tasks.checkpoints['segmentation']
    call(test.main, config, checkpoint, '--work-dir', tmp_path, '--out', tmp_path / 'test')
    folder = tasks.data / 'images/val'
    call(predict.main, folder, *options(tasks, 'segmentation', tmp_path / 'out'))
    for path in folder.iterdir():
        ours, theirs = (
            cv2.imread(str(tmp_path / each / path.name), cv2.IMREAD_UNCHANGED)
            for each in ('out/labels', 'test')
        )
        assert (ours == theirs).all()


def test_detections_are_read_by_coco(tasks, tmp_path):
    folder, out = tasks.data / 'images/val', tmp_path / 'out'
    call(predict.main, folder, *options(tasks, 'detection', out), '--score-thr', 0)
    coco = COCO(out / 'images.json')
    results = coco.loadRes(str(out / 'detections.json'))
    assert [each['name'] for each in coco.cats.values()] == ['circle', 'square', 'triangle', 'star']
    assert len(coco.imgs) == 3
    assert len(results.anns) > 0
    for each in results.anns.values():
        assert results.annToMask(each).shape == (64, 64)
        assert each['category_id'] in coco.cats
    assert len(list((out / 'drawn').iterdir())) == 3
    highest = max(each['score'] for each in results.anns.values())
    call(predict.main, folder, *options(tasks, 'detection', out), '--score-thr', highest + 1e-6)
    assert json.loads((out / 'detections.json').read_text()) == []


def test_label_maps_of_tiles_are_those_of_their_cut_outs(tasks, tmp_path, large):
    out = tmp_path / 'out'
    call(predict.main, large, *options(tasks, 'segmentation', out), '--tile', 128, '--overlap', 64)
    labels = cv2.imread(str(out / 'labels/large.png'), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (150, 200)
    cut_out = tmp_path / 'corner.png'  # The lower right tile.
    cv2.imwrite(str(cut_out), cv2.imread(str(large))[64:, 128:])
    call(predict.main, cut_out, *options(tasks, 'segmentation', out))
    corner = cv2.imread(str(out / 'labels/corner.png'), cv2.IMREAD_UNCHANGED)
    own = slice((64 + 128) // 2, None), slice((128 + 192) // 2, None)
    assert (labels[own] == corner[own[0].start - 64 :, own[1].start - 128 :]).all()


def test_detections_of_tiles_lie_in_the_image(tasks, tmp_path, large):
    out = tmp_path / 'out'
    arguments = *options(tasks, 'detection', out), '--score-thr', 0
    call(predict.main, large, *arguments, '--tile', 96, '--overlap', 32)
    coco = COCO(out / 'images.json')
    results = coco.loadRes(str(out / 'detections.json')).anns.values()
    assert max(each['bbox'][0] for each in results) > 100
    for each in results:
        x, y, width, height = each['bbox']
        assert min(x, y) >= 0
        assert x + width <= 200 + 1e-3
        assert y + height <= 150 + 1e-3
        rows, columns = coco.annToMask(each).nonzero()
        if len(rows):  # A mask lies in its box.
            assert x - 1 <= columns.min() <= columns.max() <= x + width + 1
            assert y - 1 <= rows.min() <= rows.max() <= y + height + 1


@pytest.mark.parametrize('task', ['segmentation', 'detection'])
def test_a_video_is_drawn_frame_by_frame(tasks, tmp_path, task):
    path, out = tmp_path / 'clip.avi', tmp_path / 'out'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 10, (96, 64))
    if not writer.isOpened():
        pytest.skip('this OpenCV writes no video')
    for shade in (0, 100, 200):
        writer.write(np.full((64, 96, 3), shade, np.uint8))
    writer.release()
    call(predict.main, path, *options(tasks, task, out), '--window-size', 4)
    name = 'segmentation' if task == 'segmentation' else 'images'
    images = json.loads((out / f'{name}.json').read_text())['images']
    assert [each['file_name'] for each in images] == [f'clip_00000{index}' for index in range(3)]
    drawn = cv2.VideoCapture(str(out / 'drawn/clip.mp4'))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert drawn.get(cv2.CAP_PROP_FPS) == pytest.approx(10)


def test_the_demo_takes_a_work_dir(tasks, tmp_path):
    shutil.copy(tasks.checkpoints['segmentation'], tmp_path / 'iter_6.pth')
    image = next((tasks.data / 'images/val').iterdir())
    arguments = '--config', tasks.configs['segmentation'], '--checkpoint', tmp_path
    printed = succeed('demo/image_demo.py', image, *arguments, '--out-dir', tmp_path / 'out')
    assert '1 predicted -> ' in printed
    assert (tmp_path / 'out/labels' / image.name).is_file()


def test_mistakes_end_in_one_line(tasks, tmp_path, capsys):
    empty, text = tmp_path / 'empty', tmp_path / 'text.png'
    empty.mkdir()
    text.write_text('no image')
    image = next((tasks.data / 'images/val').iterdir())
    cut = tmp_path / 'cut.png'
    cut.write_bytes(image.read_bytes()[:-200])
    film = tmp_path / 'film.mp4'
    film.write_text('no video')
    rest = options(tasks, 'segmentation', tmp_path / 'out')
    mistakes = {
        (tmp_path / 'none.png', *rest): 'does not exist; allowed: an image, a folder or a video',
        (empty, *rest): 'no images in it',
        (text, *rest): "text.png' cannot be read",
        (cut, *rest): "cut.png' cannot be read",
        (ROOT / 'README.md', *rest): "README.md' cannot be read",
        (film, *rest): "film.mp4' cannot be read: it is damaged, or of an unknown codec",
        (image, *rest, '--tile', 64): '--tile: got 64, allowed: more than --overlap, 128',
        (image, *rest, '--tile', 0): "--tile: got '0', allowed: an integer of at least 1",
        (image, *rest, '--device', 'tpu'): "--device: got 'tpu'",
        (image, *rest, '--runtime', 'x', 'y'): "--runtime: got 'x', allowed: onnxruntime or",
        (image, *rest, '--checkpoint', tasks.weights): 'the checkpoint does not fit',
        (image, *rest, '--checkpoint', empty): 'no iter_*.pth or epoch_*.pth in this folder',
        (image, *rest, '--config', 'swinv2_tiny_in1k'): 'mmpretrain',
    }
    capsys.readouterr()
    for arguments, message in mistakes.items():
        assert message in error_line(capsys, predict.main, *arguments), message
        capsys.readouterr()


class Unsafe:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_a_checkpoint_is_not_unpickled(tasks, tmp_path, capsys):
    torch.save({'state_dict': Unsafe(tmp_path / 'made')}, tmp_path / 'unsafe.pth')
    image = next((tasks.data / 'images/val').iterdir())
    arguments = *options(tasks, 'segmentation', tmp_path), '--checkpoint', tmp_path / 'unsafe.pth'
    message = error_line(capsys, predict.main, image, *arguments)
    assert 'refused by the safe loader' in message
    assert not (tmp_path / 'made').exists()


def test_decompression_bombs_are_refused_and_tiles_are_the_way_to_large_images(
    tasks, tmp_path, capsys
):
    def bomb(side):
        """A PNG file that ends behind its header."""
        size = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
        chunks = [(b'IHDR', size), (b'IDAT', b''), (b'IEND', b'')]
        path = tmp_path / f'{side}.png'
        path.write_bytes(
            b'\x89PNG\r\n\x1a\n'
            + b''.join(
                struct.pack('>I', len(data)) + kind + data + struct.pack('>I', crc32(kind + data))
                for kind, data in chunks
            )
        )
        return path, *options(tasks, 'segmentation', tmp_path / 'out')

    message = error_line(capsys, predict.main, *bomb(20_000))
    assert 'got 400,000,000 pixels, allowed: 178,956,970; with --tile more' in message
    message = error_line(capsys, predict.main, *bomb(40_000), '--tile', 512)
    assert 'got 1,600,000,000 pixels, allowed: 1,073,741,824; crop it' in message


def test_an_exported_file_predicts_what_its_model_does(tasks, tmp_path):
    for needed in ('onnxruntime', 'onnxscript'):
        pytest.importorskip(needed)
    from tools.deployment import export

    files = tasks.configs['segmentation'], tasks.checkpoints['segmentation']
    image, file = next((tasks.data / 'images/val').iterdir()), tmp_path / 'model.onnx'
    call(export.main, *files, '--out', file, '--size', 64)
    labels = []
    for name, runtime in ('torch', ()), ('file', ('--runtime', 'onnxruntime', file)):
        call(predict.main, image, *options(tasks, 'segmentation', tmp_path / name), *runtime)
        path = tmp_path / name / 'labels' / image.name
        labels.append(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    # Rounding may decide between classes whose logits are equal.
    assert (labels[0] == labels[1]).mean() > 0.99


@pytest.mark.slow
def test_memory_grows_by_the_pixels_of_image_and_label_map_alone(tasks, tmp_path):
    """By 4 bytes each, and half of that for the allocator. Logits of 5 classes would take 20 more.

    What a tile needs, and what is drawn (at most 2048 pixels a side), is the same for both sizes.
    """
    from tools.utils.memory import PeakMemory

    taken = []
    for side in (1024, 4096, 8192):  # the first to warm up
        path = tmp_path / f'{side}.png'
        cv2.imwrite(str(path), np.zeros((side, side, 3), np.uint8))
        memory = PeakMemory('cpu')
        arguments = options(tasks, 'segmentation', tmp_path / 'out')
        call(predict.main, path, *arguments, '--tile', 1024)
        taken.append(memory.taken())
    if taken[0][1] != 'clear_refs':
        pytest.skip('the kernel does not reset its record of the peak')
    growth = taken[2][0] - taken[1][0]
    assert growth < 1.5 * 4 * (8192**2 - 4096**2)
