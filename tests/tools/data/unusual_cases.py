"""Data sets that are unusual: some deserve a warning, others nothing."""

import numpy as np
from PIL import Image

from tests.tools.data import small_data as data
from tests.tools.data.fault_cases import IMAGE, LABELS, Case
from tests.tools.data.small_data import (
    edit_all_labels,
    edit_annotation,
    edit_bytes,
    edit_image,
    edit_rle,
    remove,
    with_palette,
)

WARNINGS = {
    'zero-area box': Case('coco', edit_annotation(bbox=[2, 2, 8, 0.0]), 'has no area: mmdet lea'),
    'area of 0': Case('coco', edit_annotation(area=0), r'\(area 0\) .* has no area: mmdet'),
    'box over the border': Case(
        'coco', edit_annotation(bbox=[40, 2, 20, 9]), 'box .* reaches over its border'
    ),
    'crowd': Case('coco', edit_annotation(iscrowd=1), 'annotation 5 is a crowd'),
    'CMYK image': Case(
        'coco', edit_image(IMAGE, lambda i: i.convert('CMYK'), 'JPEG'), r"2\.jpg' is CMYK"
    ),
    'PNG named .jpg': Case(
        'coco', edit_image(IMAGE, Image.Image.copy, 'PNG'), r"2\.jpg' is a PNG, not what its name"
    ),
    'image of 16 bits': Case(
        'coco',
        edit_image(IMAGE, lambda i: Image.fromarray(np.full((32, 48), 4000, np.uint16)), 'PNG'),
        r"2\.jpg' has 16 bits .* 4000, becomes 15",
    ),
    'label map without image': Case(
        'semantic', remove(IMAGE), r"label map '.*2\.png' belongs to no image"
    ),
    'class without a pixel': Case(
        'semantic',
        edit_all_labels('labels', lambda x: np.where(x == 3, 0, x).astype(np.uint8)),
        r"class 3 'car' is in none of the 6 label maps",
    ),
    'ADE20K: labels from 0 although it is reduced': Case(
        'ade20k',
        edit_all_labels('annotations/training', lambda x: x - (x > 0)),
        r"class 149 'flag' is in none of the 6 label maps, .*reduce_zero_label=True makes 0",
    ),
}
FINE = {
    'as made': Case('coco', lambda _: None, ''),
    'semantic as made': Case('semantic', lambda _: None, ''),
    'ADE20K as made': Case('ade20k', lambda _: None, ''),
    'gray image': Case('coco', edit_image(IMAGE, lambda i: i.convert('L'), 'JPEG'), ''),
    'RLE as a list': Case('coco', edit_rle(counts=[36, 1500]), ''),
    'palette of indices': Case('semantic', edit_image(LABELS, with_palette), ''),
    'bytes behind a JPEG': Case('coco', edit_bytes(IMAGE, lambda c: c + b'\0' * 5000), ''),
    'linked image': Case(
        'coco', lambda f: ((f / IMAGE).rename(f / 'x.jpg'), (f / IMAGE).symlink_to('../x.jpg')), ''
    ),
    'image with alpha': Case(
        'semantic',
        lambda folder: [
            edit_image(f'images/{i}.jpg', lambda x: x.convert('RGBA'), 'PNG')(folder)
            or (folder / f'images/{i}.jpg').rename(folder / f'images/{i}.png')
            for i in range(data.NUM_IMAGES)
        ],
        '',
        settings=dict(img_suffix='.png'),
    ),
}
