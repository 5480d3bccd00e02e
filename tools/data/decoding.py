"""Decoding that refuses what OpenMMLab's decoders read as if nothing were wrong, or as None."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import mmcv
from PIL import Image

_ENDS = {b'\xff\xd8\xff': b'\xff\xd9', b'\x89PNG\r\n\x1a\n': b'IEND'}  # By how a file begins.
_TAIL = 1024  # Some cameras write behind the end of a JPEG.


def refuse_truncated(content: bytes) -> None:
    """Raise an error for a file that is empty, or a JPEG or PNG that is cut.

    OpenCV may fill the rest of such an image with gray, with no error.

    Raises:
        OSError: Saying so.
    """
    if not content:
        raise OSError('the file is empty')
    for begin, end in _ENDS.items():
        # Rarely a whole file has no end: Pillow reads it all.
        if content.startswith(begin) and content.rfind(end, max(0, len(content) - _TAIL)) < 0:
            with warnings.catch_warnings(action='ignore'), Image.open(io.BytesIO(content)) as image:
                image.load()


@contextmanager
def strict_decoding() -> Iterator[None]:
    """Make mmcv's decoding raise an error for files that are cut or cannot be decoded."""
    plain = mmcv.imfrombytes

    def decode(content: bytes, *args: Any, **kwargs: Any) -> Any:
        refuse_truncated(content)
        image = plain(content, *args, **kwargs)
        if image is None:
            raise OSError('it is damaged, or no image of a format that is supported')
        return image

    with mock.patch.object(mmcv, 'imfrombytes', decode):
        yield


@contextmanager
def header(path: str, formats: Sequence[str] | None = None) -> Iterator[Image.Image | None]:
    """An image file of which Pillow has read the header alone; None if it cannot.

    Args:
        formats: As Pillow names them; only what reads these is called. None: all that it knows.
    """
    with warnings.catch_warnings(action='ignore'):
        try:
            image = Image.open(path, formats=formats)
        except Exception:  # Of any of its plugins.
            image = None
    if image is None:
        yield None
        return
    with image:
        yield image


def suffixes_of(image: Image.Image) -> set[str]:
    """The suffixes of files of an image's format."""
    formats = {'JPEG', 'MPO'} if image.format in ('JPEG', 'MPO') else {image.format}
    return {key for key, value in Image.registered_extensions().items() if value in formats}
