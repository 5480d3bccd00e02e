"""The images to predict: a file, those of a folder, or the frames of a video."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import cv2
import mmcv
import numpy as np
from PIL import Image

from tools.data.decoding import header, strict_decoding
from tools.data.file_checks import describe_unreadable
from tools.utils.errors import UserError
from tools.utils.images import find_images

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm')
# Larger images are taken for decompression bombs: Pillow's limit, and with tiles OpenCV's own.
MAX_PIXELS, MAX_PIXELS_IN_TILES = 178_956_970, 2**30


class Source(NamedTuple):
    """What to predict.

    Attributes:
        names: Of each image, a path relative to the folder; of frames made up.
        read: The BGR image ``(H, W, 3)`` of an index.
        frames_per_second: Of a video, else None.
    """

    names: list[str]
    read: Callable[[int], np.ndarray]
    frames_per_second: float | None = None

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        for index, name in enumerate(self.names):
            yield name, self.read(index)


def open_source(path: Path, max_pixels: int) -> Source:
    """The images of a path, each read when its turn comes.

    Raises:
        UserError: If there is none, or a video cannot be read; when an image is read, also if it
            cannot be, or has more than `max_pixels`.
    """
    if not path.exists():
        raise UserError(f"'{path}' does not exist; allowed: an image, a folder or a video")
    if path.suffix.lower() in VIDEOS and path.is_file():
        return _open_video(path)
    folder = path if path.is_dir() else path.parent
    files = find_images(path) if path.is_dir() else [path]
    names = [file.relative_to(folder).as_posix() for file in files]
    return Source(names, lambda index: read_image(files[index], max_pixels))


def read_image(path: Path, max_pixels: int) -> np.ndarray:
    """Read an image as the configs do: BGR ``(H, W, 3)``, 8 bits, turned as its EXIF data say.

    Raises:
        UserError: If it is none, is cut, or has too many pixels.
    """
    with mock.patch.object(Image, 'MAX_IMAGE_PIXELS', None), header(str(path)) as image:
        pixels = math.prod(image.size) if image else 0
    if pixels > max_pixels:
        hint = 'with --tile more are allowed' if max_pixels < MAX_PIXELS_IN_TILES else 'crop it'
        raise UserError(f"image '{path}': got {pixels:,} pixels, allowed: {max_pixels:,}; {hint}")
    try:
        with strict_decoding():
            return mmcv.imfrombytes(path.read_bytes())
    except (OSError, cv2.error, Image.DecompressionBombError) as error:
        raise UserError(f'image {describe_unreadable(str(path), error)}') from error


def _open_video(path: Path) -> Source:
    video = mmcv.VideoReader(str(path))
    if not video.opened or len(video) < 1:
        raise UserError(f"video '{path}' cannot be read: it is damaged, or of an unknown codec")

    def read(index: int) -> np.ndarray:
        frame = video[index]
        if frame is None:
            raise UserError(f"video '{path}': frame {index} of {len(video)} cannot be read")
        return frame

    names = [f'{path.stem}_{index:06d}' for index in range(len(video))]
    return Source(names, read, video.fps)
