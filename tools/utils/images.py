"""Reading the images of a folder, with their labels, as inputs of a classifier."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tools.utils.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
# ImageNet's, for RGB from 0 to 255, as in the configs.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def find_images(folder: Path) -> list[Path]:
    """All images in a folder and its subfolders, sorted.

    Raises:
        UserError: If there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"folder '{folder}' does not exist")
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"'{folder}': no images in it ({', '.join(SUFFIXES)})")
    return found


def read_labels(file: Path, folder: Path, images: list[Path], classes: int) -> list[int]:
    """The class of each image, read from lines of ``path/in/the/folder index``.

    Raises:
        UserError: If a line has another form, or an image has no line.
    """
    if not file.is_file():
        raise UserError(f"labels '{file}' does not exist")
    labels = {}
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        path, _, index = line.strip().rpartition(' ')
        if not path or not index.isdigit() or int(index) >= classes:
            raise UserError(
                f"{file}, line {number}: got '{line}', allowed: a path in {folder} "
                f'and a class from 0 to {classes - 1}'
            )
        labels[path.strip()] = int(index)
    names = [path.relative_to(folder).as_posix() for path in images]
    missing = [name for name in names if name not in labels]
    if missing:
        raise UserError(
            f'{file}: has no label for {len(missing)} of {len(names)} images '
            f'({", ".join(missing[:3])}, ...)'
        )
    return [labels[name] for name in names]


def open_image(path: Path) -> Image.Image:
    """Read an image as RGB.

    Raises:
        UserError: If the file is no image, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode[0] in 'IF':  # Converting would clip them to 255.
                raise UserError(
                    f"image '{path}': got mode {image.mode}, allowed: at most 8 bits per channel"
                )
            return image.convert('RGB')
    except OSError as error:
        raise UserError(f"image '{path}' cannot be read: {error}") from error


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The test-time crop of ImageNet classifiers: short side to 8/7 of the size, then its center.

    Source:
        Official evaluation of Swin: ``Resize(int(256 / 224 * size))``, ``CenterCrop(size)``.
    """
    short = int(256 / 224 * size)
    width, height = (side * short // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def to_tensor(image: Image.Image) -> Tensor:
    """A normalized image, the input of the backbone: ``(3, H, W)``."""
    pixels = torch.from_numpy(np.asarray(image, np.float32).copy()).permute(2, 0, 1)
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
