"""Small data sets of each format, their configs, and ways to spoil them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

WIDTH, HEIGHT, NUM_IMAGES = 48, 32, 6
COCO_CLASSES = ('cat', 'dog')
SEMANTIC_CLASSES = ('sky', 'road', 'tree', 'car')


def _image(index: int) -> Image.Image:
    pixels = np.random.default_rng(index).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return Image.fromarray(pixels)


def make_coco(folder: Path) -> None:
    """Images with two objects each: a polygon and a compressed mask."""
    (folder / 'images').mkdir(parents=True)
    images, annotations = [], []
    for index in range(NUM_IMAGES):
        name = f'{index}.jpg'
        _image(index).save(folder / 'images' / name)
        images.append(dict(id=index + 1, file_name=name, width=WIDTH, height=HEIGHT))
        mask = np.zeros((HEIGHT, WIDTH), np.uint8, order='F')
        mask[4:12, 20:30] = 1
        rle = mask_api.encode(mask)
        rle['counts'] = rle['counts'].decode()
        shapes = ([[2, 2, 12, 2, 12, 10]], [2, 2, 10, 8]), (rle, [20, 4, 10, 8])
        for number, (segmentation, box) in enumerate(shapes):
            annotations.append(
                dict(
                    id=2 * index + number + 1,
                    image_id=index + 1,
                    category_id=(3, 7)[number],
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                    segmentation=segmentation,
                )
            )
    categories = [dict(id=3, name='cat'), dict(id=7, name='dog')]
    data = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'a.json').write_text(json.dumps(data))


def coco_settings(folder: Path) -> dict:
    return dict(
        type='CocoDataset',
        data_root=str(folder),
        ann_file='a.json',
        data_prefix=dict(img='images'),
        metainfo=dict(classes=COCO_CLASSES),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        ],
    )


def make_semantic(folder: Path) -> None:
    """Images and label maps of four classes and ignored pixels."""
    _make_pairs(folder / 'images', folder / 'labels', range(len(SEMANTIC_CLASSES)), 255)


def semantic_settings(folder: Path) -> dict:
    return dict(
        type='BaseSegDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=SEMANTIC_CLASSES),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
    )


def make_ade20k(folder: Path) -> None:
    """ADE20K's folders: 0 is no class, 1 to 150 are the classes."""
    _make_pairs(folder / 'images/training', folder / 'annotations/training', range(1, 151), 0)


def ade20k_settings(folder: Path) -> dict:
    return dict(
        type='ADE20KDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', reduce_zero_label=True),
        ],
    )


def _make_pairs(images: Path, labels: Path, classes: range, ignored: int) -> None:
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in range(NUM_IMAGES):
        _image(index).save(images / f'{index}.jpg')
        values = np.resize(np.array(classes, np.uint8), (HEIGHT, WIDTH))
        values[0] = ignored
        Image.fromarray(values).save(labels / f'{index}.png')


def edit_json(change: Callable[[dict], object], name: str = 'a.json') -> Callable[[Path], None]:
    """Spoil annotations: what it returns writes what a function makes of the parsed file."""

    def spoil(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    return spoil


def edit_annotation(**fields: object) -> Callable[[Path], None]:
    """Spoil the annotation with id 5, a polygon, of image 3."""
    return edit_json(lambda data: data['annotations'][4].update(fields))


def edit_rle(**fields: object) -> Callable[[Path], None]:
    """Spoil the mask of the annotation with id 6, of image 3."""
    return edit_json(lambda data: data['annotations'][5]['segmentation'].update(fields))


def edit_bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Spoil a file."""

    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return spoil


def edit_image(
    name: str, change: Callable[[Image.Image], Image.Image], form: str | None = None, **options
) -> Callable[[Path], None]:
    """Spoil an image: it is saved as what a function makes of it, perhaps in another format."""

    def spoil(folder: Path) -> None:
        with Image.open(folder / name) as image:
            image.load()
        change(image).save(folder / name, form, **options)

    return spoil


def edit_labels(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Spoil the values of a label map."""
    return edit_image(name, lambda image: Image.fromarray(change(np.array(image))))


def edit_all_labels(folder_name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    """Spoil the values of all label maps."""

    def spoil(folder: Path) -> None:
        for path in (folder / folder_name).iterdir():
            edit_labels(f'{folder_name}/{path.name}', change)(folder)

    return spoil


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def empty(name: str) -> Callable[[Path], object]:
    """Remove all files of a folder."""
    return lambda folder: [path.unlink() for path in (folder / name).iterdir()]


def link(name: str, target: str) -> Callable[[Path], object]:
    def spoil(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return spoil


def lists(key: str, change: Callable[[list], object]) -> Callable[[Path], object]:
    """Change a list of the annotation file."""
    return edit_json(lambda content: change(content[key]))


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def in_rgb(image: Image.Image) -> Image.Image:
    return image.convert('RGB')


def with_palette(image: Image.Image) -> Image.Image:
    image = image.convert('L')
    image.putpalette([value % 256 for value in range(768)])
    return image
