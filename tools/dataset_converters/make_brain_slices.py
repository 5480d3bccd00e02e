"""Make a segmentation data set of slices of a brain: background, gray matter, white matter.

From the ICBM 2009a template, an average of MRI scans of 152 people, which nilearn ships
(pip install nilearn). Its license permits use, copies and changes for any purpose:
https://nist.mni.mcgill.ca/icbm-152-nonlinear-atlases-2009/
"""

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np

CLASSES = 'background', 'gray matter', 'white matter'
# Of each 16 mm in height, 8 slices for training and 4 for validation, with 2 mm between them. Where
# there is less brain, at both ends, slices are left out.
_PERIOD, _TRAIN, _VAL = 16, range(8), range(10, 14)
_LEAST_BRAIN = 0.05


def split_of(height: int) -> str | None:
    """The split that a slice at a height in mm belongs to, or None."""
    place = height % _PERIOD
    return 'train' if place in _TRAIN else 'val' if place in _VAL else None


def write_slices(out: Path, image: np.ndarray, gray: np.ndarray, white: np.ndarray) -> dict:
    """Write axial slices to images/{train,val}/ and their label maps to semseg/{train,val}/.

    Args:
        image: Of the brain, 0 to 1, ``(x, y, z)`` in steps of 1 mm.
        gray: The probability of gray matter at each place.
        white: That of white matter.

    Returns:
        The number of images by split.
    """
    labels = np.stack((1 - gray - white, gray, white)).argmax(0).astype(np.uint8)
    counts = dict(train=0, val=0)
    for split in counts:
        for folder in ('images', 'semseg'):
            (out / folder / split).mkdir(parents=True, exist_ok=True)
    for height in range(image.shape[2]):
        split = split_of(height)
        if split is None or (labels[..., height] > 0).mean() < _LEAST_BRAIN:
            continue
        pixels = (image[..., height].clip(0, 1) * 255).round().astype(np.uint8)
        # The nose upwards, as slices are usually shown.
        for folder, plane in (('images', pixels), ('semseg', labels[..., height])):
            path = out / folder / split / f'{height:03d}.png'
            cv2.imwrite(str(path), np.ascontiguousarray(plane.T[::-1]))
        counts[split] += 1
    return counts


def make_brain_slices(out: Path) -> dict:
    """Make the data set; it has its name when it is complete.

    Returns:
        The number of images by split.
    """
    from nilearn import datasets

    loaders = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
    )
    volumes = [load(resolution=1).get_fdata() for load in loaders]
    partial = out.with_name(out.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    counts = write_slices(partial, *volumes)
    partial.rename(out)
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, default=Path('data/brain'))
    args = parser.parse_args()
    name = Path(__file__).name
    if args.out.exists():
        sys.exit(f"{name}: error: --out: '{args.out}' exists; remove it or choose another")
    if importlib.util.find_spec('nilearn') is None:
        sys.exit(f'{name}: error: nilearn is not installed: pip install nilearn')
    counts = make_brain_slices(args.out)
    print(f'{args.out}: {counts["train"]} training and {counts["val"]} validation images')


if __name__ == '__main__':
    main()
