"""Images are cropped as in the official evaluation, and refused if they cannot be read right."""

import numpy as np
import pytest

Image = pytest.importorskip('PIL.Image')

from tools.utils.errors import UserError
from tools.utils.images import center_crop, find_images, open_image, to_tensor


@pytest.mark.parametrize('size', [(577, 600), (1107, 1600), (50, 2999), (9, 7), (256, 256)])
def test_center_crop_is_the_official_one(size):
    crop = center_crop(Image.new('RGB', size), 256)
    assert crop.size == (256, 256)
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    pixels[:, : size[0] // 2] = 255  # The left half, which stays the left half.
    halves = np.asarray(center_crop(Image.fromarray(pixels), 224))
    assert (halves[:, :90] == 255).all() or size[0] < 20
    assert halves[:, 150:].max() < 30 or size[0] < 20


def test_to_tensor_normalizes_as_the_configs():
    image = Image.new('RGB', (5, 4), (124, 116, 104))
    assert to_tensor(image).shape == (3, 4, 5)
    expected = [(124 - 123.675) / 58.395, (116 - 116.28) / 57.12, (104 - 103.53) / 57.375]
    rounding = 255 * float(np.finfo(np.float32).eps)
    assert to_tensor(image)[:, 2, 3].tolist() == pytest.approx(expected, abs=rounding)


def test_images_of_subfolders_are_found_in_order(tmp_path):
    for name in ('b/2.PNG', 'a/3.jpg', '1.png', 'notes.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert names == ['1.png', 'a/3.jpg', 'b/2.PNG']


def test_images_with_more_than_8_bits_are_refused(tmp_path):
    Image.fromarray(np.arange(256 * 16, dtype=np.uint16).reshape(64, 64)).save(tmp_path / 'x.png')
    with pytest.raises(UserError, match='allowed: at most 8 bits per channel'):
        open_image(tmp_path / 'x.png')
