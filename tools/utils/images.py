"""Images for a classifier: found in a folder, scaled, cropped, normalized."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tools.utils.config_checks import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
# Of ImageNet, in RGB on a scale of 0 to 255: as the configs have them.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def find_images(folder: Path) -> list[Path]:
    """All images of a folder and its folders, sorted.

    Raises:
        UserError: If there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"'{folder}' is no folder")
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"'{folder}': no images in it ({', '.join(SUFFIXES)})")
    return found


def read_labels(file: Path, folder: Path, images: list[Path], classes: int) -> list[int]:
    """The class of each image, from lines of ``path/in/the/folder index``.

    Raises:
        UserError: If a line is no such thing, or an image has none.
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
    """An RGB image.

    Raises:
        UserError: If the file is none.
    """
    try:
        with Image.open(path) as image:
            if image.mode[0] in 'IF':  # Converting would clip them to 255.
                raise UserError(
                    f"image '{path}' has more than 8 bits a channel (mode {image.mode}), allowed: 8"
                )
            return image.convert('RGB')
    except OSError as error:
        raise UserError(f"image '{path}' cannot be read: {error}") from error


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """What ImageNet classifiers are tested on: short side to 8/7 of the size, bicubic; the center.

    Source:
        Official evaluation of Swin: ``Resize(int(256 / 224 * size))``, ``CenterCrop(size)``.
    """
    short = int(256 / 224 * size)
    width, height = (side * short // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def normalized(image: Image.Image) -> Tensor:
    """An image as the backbone wants it: ``(3, H, W)``."""
    pixels = torch.from_numpy(np.asarray(image, np.float32).copy()).permute(2, 0, 1)
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
