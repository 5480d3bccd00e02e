"""Make the shapes data set: overlapping shapes of four kinds over textured backgrounds.

One folder serves both tasks: `images/{train,val}`, `semseg/{train,val}` (label maps) and
`annotations/instances_{train,val}.json` (COCO's format, masks as RLE). The same arguments give the
same files.

Each kind has a typical hue, but the hues of neighboring kinds overlap: by hue alone one shape in
twenty is mistaken. Models trained for a few minutes from random weights go by the hue: on shapes of
random hue their classes are no better than chance.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle

CLASSES = ('background', 'circle', 'square', 'triangle', 'star')
_MIN_VISIBLE = 0.25  # A shape of which others hide more than 1 - this is left out.
_MIN_AREA = 40  # Pixels.
# Corners of each kind, and its radius relative to the drawn one: all kinds get similar areas.
_OUTLINES = {'circle': (40, 0.9), 'square': (4, 1.1), 'triangle': (3, 1.3), 'star': (10, 1.3)}
_STAR_INNER = 0.45  # Inner radius of a star, relative to its outer.


def outline(kind: str, center: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Corners ``(n, 2)`` of a shape, (x, y) in pixels."""
    corners, scale = _OUTLINES[kind]
    turn = angle + 2 * np.pi * np.arange(corners) / corners
    reach = np.full(corners, scale * radius)
    if kind == 'star':
        reach[1::2] *= _STAR_INNER
    return center + reach[:, None] * np.stack((np.cos(turn), np.sin(turn)), -1)


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth noise of several scales ``(size, size)``, mean about 0, spread about 1."""
    total = np.zeros((size, size), np.float32)
    for cells in (4, 12, size // 2):
        noise = rng.standard_normal((cells, cells)).astype(np.float32)
        total += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return total / 3**0.5


def color(rng: np.random.Generator, kind: int | None) -> np.ndarray:
    """A BGR color: dull for the background (None), vivid and around its typical hue for a kind."""
    if kind is None:
        hue, saturation, value = rng.uniform((0, 0, 50), (180, 60, 130))
    else:
        hue = (45 * kind + rng.normal(0, 11)) % 180
        saturation, value = rng.uniform(120, 230, 2)
    pixel = np.uint8([[[hue, saturation, value]]])
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def draw_image(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple]]:
    """Draw one image of at most five shapes; one that would hide another is left out.

    Returns:
        The image, uint8 BGR ``(size, size, 3)``, and for each shape its class index and the
        boolean mask ``(size, size)`` of its visible part.
    """
    canvas = color(rng, None) + 12 * texture(rng, size)[..., None]
    shapes = []
    for _ in range(rng.integers(2, 6)):
        kind = int(rng.integers(1, len(CLASSES)))
        corners = outline(
            CLASSES[kind],
            size * rng.uniform(0.1, 0.9, 2),
            size * rng.uniform(0.12, 0.26),
            rng.uniform(0, 2 * np.pi),
        )
        mask = cv2.fillPoly(np.zeros((size, size), np.uint8), [corners.round().astype(np.int32)], 1)
        mask = mask.astype(bool)
        if mask.sum() < _MIN_AREA or any(
            (old & ~mask).sum() < max(_MIN_VISIBLE * whole, _MIN_AREA) for _, old, whole in shapes
        ):
            continue
        shapes = [(k, old & ~mask, whole) for k, old, whole in shapes]
        shapes.append((kind, mask, mask.sum()))
        canvas[mask] = (color(rng, kind) + 10 * texture(rng, size)[..., None])[mask]
    canvas += rng.normal(0, 5, canvas.shape)
    return canvas.clip(0, 255).astype(np.uint8), [(kind, mask) for kind, mask, _ in shapes]


def write_split(out: Path, split: str, count: int, size: int, seed: int) -> None:
    """Write the images, label maps and annotations of one split."""
    for folder in ('images', 'semseg'):
        (out / folder / split).mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        # A generator of its own for each image: a longer data set begins like a shorter one.
        rng = np.random.default_rng([seed, split == 'val', index])
        image, shapes = draw_image(rng, size)
        labels = np.zeros((size, size), np.uint8)
        name = f'{index:05d}.png'
        for kind, mask in shapes:
            labels[mask] = kind
            encoded = rle.encode(np.asfortranarray(mask, np.uint8))
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index + 1,
                    category_id=kind,
                    iscrowd=0,
                    area=float(mask.sum()),
                    bbox=rle.toBbox(encoded).tolist(),
                    segmentation=dict(size=[size, size], counts=encoded['counts'].decode()),
                )
            )
        images.append(dict(id=index + 1, file_name=name, width=size, height=size))
        cv2.imwrite(str(out / 'images' / split / name), image)
        cv2.imwrite(str(out / 'semseg' / split / name), labels)
    (out / 'annotations').mkdir(exist_ok=True)
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES) if i]
    (out / 'annotations' / f'instances_{split}.json').write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )


def make_shapes(out: Path, train: int, val: int, size: int, seed: int) -> bool:
    """Make the data set, unless it is there.

    Returns:
        Whether it was made now.

    Raises:
        ValueError: If `out` holds something else.
    """
    settings = dict(train=train, val=val, size=size, seed=seed)
    stamp = out / 'settings.json'
    if out.exists():
        if stamp.is_file() and json.loads(stamp.read_text()) == settings:
            return False
        raise ValueError(
            f"'{out}' exists and holds something else than asked for; remove it or "
            'choose another --out'
        )
    # Written beside and moved at the end: so that an incomplete data set never has its name.
    partial = out.with_name(out.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    for split, count in (('train', train), ('val', val)):
        write_split(partial, split, count, size, seed)
    (partial / 'settings.json').write_text(json.dumps(settings))
    partial.rename(out)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, default=Path('data/shapes'))
    parser.add_argument('--train', type=int, default=800, help='training images')
    parser.add_argument('--val', type=int, default=100, help='validation images')
    parser.add_argument('--size', type=int, default=128, help='side of an image in pixels')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    for name, least in (('train', 1), ('val', 1), ('size', 32), ('seed', 0)):
        if getattr(args, name) < least:
            parser.error(f'--{name}: got {getattr(args, name)}, allowed: at least {least}')
    try:
        made = make_shapes(**vars(args))
    except (ValueError, OSError) as error:
        sys.exit(f'make_shapes.py: error: {error}')
    print(
        f'{args.out}: {args.train} training and {args.val} validation images '
        f'({"made" if made else "already there"})'
    )


if __name__ == '__main__':
    main()
