"""Checks of files that strangers send, before they are decoded."""

import warnings
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from tools.data.decoding import header
from tools.inference.sources import read_image
from tools.utils.errors import UserError

# As Pillow names them. Each is decoded by OpenCV, and Pillow reads its size from the header alone.
FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'TIFF', 'GIF')
MAX_BYTES, MAX_PIXELS = 20 * 2**20, 2**24
# A narrow image of few pixels may be cut into thousands of tiles.
MAX_SIDE = 2**14


class Refused(UserError):
    """What a visitor sent is not accepted. The message has no path, nor anything of the machine."""


def read_upload(path: Path, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image that is not trusted: BGR ``(H, W, 3)``, 8 bits, turned as its EXIF data say.

    Of an animation or a file of several pages, the first.

    Raises:
        Refused: If it has too many bytes; if it is no image of :data:`FORMATS`; if its header says
            that it has too many pixels, which are then not decoded; or if it is damaged.
    """
    if (num_bytes := path.stat().st_size) > max_bytes:
        raise Refused(f'The file has {num_bytes:,} bytes, allowed: {max_bytes:,}.')
    # Pillow's own limit would make the header of a larger image unreadable.
    with mock.patch.object(Image, 'MAX_IMAGE_PIXELS', None), header(str(path), FORMATS) as image:
        size = image and image.size
    if size is None:
        allowed = ', '.join(FORMATS)
        raise Refused(f'The file is no image, or one of another format; allowed: {allowed}.')
    width, height = size
    if width * height > max_pixels:
        raise Refused(
            f'The image has {width:,} x {height:,} = {width * height:,} pixels, allowed: '
            f'{max_pixels:,}.'
        )
    if max(width, height) > MAX_SIDE:
        raise Refused(f'The image has {width:,} x {height:,} pixels, allowed: {MAX_SIDE:,} a side.')
    try:
        with warnings.catch_warnings(action='ignore'):
            return read_image(path, max_pixels)
    except UserError as error:
        raise Refused('The image cannot be decoded: it is cut, damaged or unusual.') from error
