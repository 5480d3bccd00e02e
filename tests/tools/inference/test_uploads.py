"""tools/inference/uploads.py: which files of visitors are read, and how others are refused."""

import struct
from zlib import crc32

import numpy as np
import pytest

Image = pytest.importorskip('PIL.Image')
mmcv = pytest.importorskip('mmcv')
cv2 = pytest.importorskip('cv2')

from PIL import ImageFile

from tools.inference.uploads import MAX_SIDE, Refused, read_upload

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def bomb(width, height):
    """A PNG file that ends behind its header."""
    size = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    chunks = [(b'IHDR', size), (b'IDAT', b''), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', crc32(kind + data))
        for kind, data in chunks
    )


def png(tmp_path):
    path = tmp_path / 'whole.png'
    Image.fromarray(PIXELS).save(path)
    return path.read_bytes()


REFUSED = {
    'text': (lambda _: b'no image', 'is no image, or one of another format; allowed: PNG, JPEG, '),
    'empty': (lambda _: b'', 'The file is no image'),
    'another format': (
        lambda _: b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n',
        'or one of another format',
    ),
    'bomb': (
        lambda _: bomb(100_000, 100_000),
        'The image has 100,000 x 100,000 = 10,000,000,000 pixels, allowed: 16,777,216.',
    ),
    'narrow': (
        lambda _: bomb(MAX_SIDE + 1, 1),
        'The image has 16,385 x 1 pixels, allowed: 16,384 a side.',
    ),
    'bytes': (
        lambda tmp_path: png(tmp_path) + bytes(30_000),
        f'bytes, allowed: {20_000:,}.',
    ),
}  # fmt: skip


@pytest.mark.parametrize(('content', 'message'), REFUSED.values(), ids=REFUSED)
def test_refused_before_it_is_decoded(tmp_path, monkeypatch, content, message):
    path = tmp_path / 'sent.png'
    path.write_bytes(content(tmp_path))
    monkeypatch.setattr(mmcv, 'imfrombytes', lambda *_: pytest.fail('decoded'))
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda *_: pytest.fail('decoded'))
    with pytest.raises(Refused) as refused:
        read_upload(path, max_bytes=20_000)
    assert message in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize('kept', [0.3, 0.9])
@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp', 'bmp', 'tif', 'gif'])
def test_cut_files_are_refused_or_read_to_their_size(tmp_path, suffix, kept):
    """OpenCV fills a cut BMP or GIF, without an error."""
    path = tmp_path / f'cut.{suffix}'
    Image.fromarray(PIXELS).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    try:
        assert read_upload(path).shape == PIXELS.shape
    except Refused as refused:
        assert 'is no image' in str(refused) or 'cannot be decoded' in str(refused)  # noqa: PT017
        assert str(tmp_path) not in str(refused)  # noqa: PT017
    else:
        assert suffix in ('bmp', 'gif')


def test_a_truncated_png_is_refused(tmp_path):
    path = tmp_path / 'cut.png'
    path.write_bytes(png(tmp_path)[:-200])
    with pytest.raises(Refused, match=r'^The image cannot be decoded: it is cut, damaged'):
        read_upload(path)


def saved(path, image, **options):
    image.save(path, **options)
    return read_upload(path)


def test_lossless_images_are_read_as_they_are(tmp_path):
    image = Image.fromarray(PIXELS)
    alpha = image.copy()
    alpha.putalpha(128)
    others = [Image.new('RGB', image.size)]
    found = [
        saved(tmp_path / 'plain.png', image),
        saved(tmp_path / 'alpha.png', alpha),
        saved(tmp_path / 'animated.png', image, save_all=True, append_images=others),
        saved(tmp_path / 'pages.tif', image, save_all=True, append_images=others),
        saved(tmp_path / 'lossless.webp', image, lossless=True),
        saved(tmp_path / 'plain.bmp', image),
    ]
    path = tmp_path / '16_bits.png'
    cv2.imwrite(str(path), PIXELS[..., ::-1].astype(np.uint16) * 257)
    for each in [*found, read_upload(path)]:
        assert each.dtype == np.uint8
        assert (each[..., ::-1] == PIXELS).all()


def test_unusual_images_are_read_as_three_channels(tmp_path):
    image = Image.fromarray(PIXELS)
    frames = [Image.new('RGB', image.size)]
    found = [
        saved(tmp_path / 'cmyk.jpg', image.convert('CMYK')),
        saved(tmp_path / 'gray.png', image.convert('L')),
        saved(tmp_path / 'palette.png', image.convert('P')),
        saved(tmp_path / 'bits.png', image.convert('1')),
        saved(tmp_path / 'animated.webp', image, save_all=True, append_images=frames),
        saved(tmp_path / 'animated.gif', image, save_all=True, append_images=frames),
    ]
    for each in found:
        assert (each.shape, each.dtype) == (PIXELS.shape, np.uint8)
        assert each.std() > 20  # The first frame: the others are black.
    exif = Image.Exif()
    exif[0x0112] = 6  # A quarter turn.
    assert saved(tmp_path / 'turned.jpg', image, exif=exif).shape == (60, 40, 3)
    assert saved(tmp_path / 'small.png', image.crop((0, 0, 1, 1))).shape == (1, 1, 3)
