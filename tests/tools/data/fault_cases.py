"""Faults of data sets, and what the line about each must say."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.tools.data import small_data as data
from tests.tools.data.small_data import (
    edit_all_labels,
    edit_annotation,
    edit_bytes,
    edit_image,
    edit_json,
    edit_labels,
    edit_rle,
    empty,
    half,
    in_rgb,
    link,
    lists,
    remove,
    rotated,
    with_palette,
)


class Case(NamedTuple):
    """A fault.

    Attributes:
        form: Of the data set, in FORMATS.
        spoil: Makes the fault in a folder.
        message: What the line about it matches.
        late: Whether it is also found when the sample of index 2 is loaded in a run.
        settings: Of the dataset, beside the usual ones.
    """

    form: str
    spoil: Callable[[Path], object]
    message: str
    late: bool = False
    settings: dict = {}  # noqa: RUF012


NAN, INF = float('nan'), float('inf')
IMAGE, LABELS = 'images/2.jpg', 'labels/2.png'
ADE_LABELS = 'annotations/training/2.png'
JSON = r"a\.json': "
CASES = {
    # Annotation files.
    'empty file of annotations': Case(
        'coco', edit_bytes('a.json', lambda _: b''), r"a\.json' cannot be read \(the file is emp"
    ),
    'annotations cut short': Case(
        'coco', edit_bytes('a.json', lambda c: c[:-99]), r"a\.json' cannot be read \(no JSON"
    ),
    'annotations that are no JSON': Case(
        'coco', edit_bytes('a.json', lambda _: b'<xml>'), r"a\.json' cannot be read \(no JSON"
    ),
    'annotations in latin-1': Case(
        'coco', edit_bytes('a.json', lambda c: c.replace(b'cat', b'\xe9')), r"a\.json'"
    ),
    'a list of annotations': Case(
        'coco', edit_bytes('a.json', lambda _: b'[1]'), r"a\.json'.*(a list, and not|COCO's format)"
    ),
    'missing annotation file': Case('coco', remove('a.json'), r"data '.*a\.json' not found"),
    'no images listed': Case('coco', lists('images', list.clear), f'{JSON}`images` is an empty'),
    'no annotations': Case(
        'coco', edit_json(lambda c: c.pop('annotations')), f'{JSON}`annotations` is missing'
    ),
    'image without width': Case(
        'coco', lists('images', lambda x: x[2].pop('width')), f'{JSON}entry 2 of `images` lacks `w'
    ),
    'annotation without area': Case(
        'coco',
        lists('annotations', lambda x: x[2].pop('area')),
        f'{JSON}entry 2 of `annotations` lacks `area`',
    ),
    'entry that is no dict': Case(
        'coco', lists('annotations', lambda x: x.append(3)), f'{JSON}entry 12 of `annotations`'
    ),
    'duplicate image ids': Case(
        'coco', lists('images', lambda x: x[2].update(id=2)), f'{JSON}image id 2 is there 2 times'
    ),
    'duplicate annotation ids': Case(
        'coco', edit_annotation(id=1), f'{JSON}annotation id 1 is there 2 times'
    ),
    'file name twice': Case(
        'coco',
        lists('images', lambda x: x[2].update(file_name='0.jpg')),
        f"{JSON}file_name '0.jpg' is there 2 times",
    ),
    'image of size 0': Case(
        'coco', lists('images', lambda x: x[2].update(width=0)), f"{JSON}image '2.jpg' has width 0"
    ),
    'duplicate category ids': Case(
        'coco', lists('categories', lambda x: x[1].update(id=3)), f'{JSON}category id 3 is there 2'
    ),
    'annotation of a missing image': Case(
        'coco', edit_annotation(image_id=99), f'{JSON}annotation 5: image_id 99 is none of `images`'
    ),
    'unlisted category': Case(
        'coco', edit_annotation(category_id=2), f'{JSON}annotation 5: category_id 2 is none of'
    ),
    'category in words': Case(
        'coco', edit_annotation(category_id='cat'), f"{JSON}annotation 5: `category_id` is 'cat'"
    ),
    'categories lack a class': Case(
        'coco',
        lists('categories', lambda x: x[1].update(name='cow')),
        r"'cat', 'cow': the file lacks 'dog'",
    ),
    # Boxes.
    'NaN box': Case('coco', edit_annotation(bbox=[NAN, 2, 3, 4]), 'annotation 5: .* is not finite'),
    'infinite box': Case('coco', edit_annotation(bbox=[1, 2, INF, 4]), 'annotation 5: .*finite'),
    'box of text': Case(
        'coco', edit_annotation(bbox=['1', 2, 3, 4]), 'annotation 5: bbox is .*, allowed: 4 numbers'
    ),
    'box of 3 numbers': Case('coco', edit_annotation(bbox=[1, 2, 3]), 'annotation 5: bbox is .*3]'),
    'box outside': Case(
        'coco', edit_annotation(bbox=[60, 2, 9, 9]), 'annotation 5: .* lies outside of it'
    ),
    'negative box': Case(
        'coco', edit_annotation(bbox=[20, 2, -9, 9]), 'annotation 5: .* has a negative side'
    ),
    # Masks.
    'polygon of 2 points': Case(
        'coco', edit_annotation(segmentation=[[1, 2, 3, 4]]), 'annotation 5: a polygon has 4 '
    ),
    'polygon of 7 numbers': Case(
        'coco', edit_annotation(segmentation=[[1] * 7]), 'annotation 5: a polygon has 7 numbers'
    ),
    'polygon without list': Case(
        'coco', edit_annotation(segmentation=[1, 2, 3, 4, 5, 6]), 'annotation 5: segmentation is .1'
    ),
    'NaN in a polygon': Case(
        'coco', edit_annotation(segmentation=[[NAN] * 6]), 'annotation 5: a polygon has a point'
    ),
    'no mask': Case('coco', edit_annotation(segmentation=[]), 'annotation 5: it has no segm'),
    'mask of another size': Case(
        'coco', edit_rle(size=[data.WIDTH, data.HEIGHT]), 'annotation 6: its RLE has the size'
    ),
    'RLE that does not fit': Case(
        'coco', edit_rle(counts='0123'), r'annotation 6: its RLE has \d+ pixels'
    ),
    'RLE of other characters': Case(
        'coco', edit_rle(counts='\t!'), 'annotation 6: the `counts` of its RLE are cut'
    ),
    'RLE of too few runs': Case('coco', edit_rle(counts=[5, 6]), 'annotation 6: its RLE has 11 '),
    'RLE of negative runs': Case('coco', edit_rle(counts=[-1, 1537]), 'annotation 6: the `coun'),
    # Images.
    'missing image': Case(
        'coco', remove(IMAGE), r"image '.*2\.jpg' of .*a\.json' cannot be read \(No such file", True
    ),
    'empty folder of images': Case(
        'coco', empty('images'), r"no image of '.*a\.json' is in '.*images' .*: set data_root", True
    ),
    'folder that is missing': Case(
        'coco', lambda folder: shutil.rmtree(folder / 'images'), "data '.*images' not found"
    ),
    'wrong folder': Case(
        'coco',
        lambda folder: (folder / 'other').mkdir(),
        "no image of '.*' is in '.*other'",
        settings=dict(data_prefix=dict(img='other')),
    ),
    'link to itself': Case(
        'coco', link(IMAGE, '2.jpg'), r"2\.jpg' .*\(Too many levels of symbolic links\)", True
    ),
    'broken link': Case('coco', link(IMAGE, 'gone'), r"2\.jpg' .*\(No such file", True),
    'folder in place of an image': Case(
        'coco',
        lambda folder: ((folder / IMAGE).unlink(), (folder / IMAGE).mkdir()),
        r"2\.jpg' .* cannot be read \(it is no file\)",
    ),
    'image without permission': Case(
        'coco', lambda folder: (folder / IMAGE).chmod(0), r"2\.jpg' cannot be read: Permi", True
    ),
    'empty image': Case(
        'coco', edit_bytes(IMAGE, lambda _: b''), r"2\.jpg' cannot be read: .*file is empty", True
    ),
    'no image': Case(
        'coco', edit_bytes(IMAGE, lambda _: b'hello'), r"2\.jpg' cannot be read: .*damaged", True
    ),
    'truncated JPEG': Case(
        'coco', edit_bytes(IMAGE, half), r"2\.jpg' cannot be read: .*truncated", True
    ),
    'GIF named .jpg': Case(
        'coco', edit_image(IMAGE, Image.Image.copy, 'GIF'), r"2\.jpg' is a GIF, not what its name"
    ),
    'width and height swapped by EXIF': Case(
        'coco',
        edit_image(IMAGE, Image.Image.copy, exif=rotated()),
        r"2\.jpg': 32 x 48 pixels as it is read \(turned .*orientation, 6, .*, 48 x 32 pixels in",
        True,
    ),
    'another width': Case(
        'coco',
        edit_image(IMAGE, lambda image: image.crop((0, 0, 40, 32))),
        r"2\.jpg': 40 x 32 pixels as it is read, 48 x 32 pixels in the annotations",
        True,
    ),
    # Label maps.
    'folder without images': Case('semantic', empty('images'), "BaseSegDataset: no image in '.*"),
    'suffix of no image': Case(
        'semantic', lambda _: None, "no image in .*='.tif'", settings=dict(img_suffix='.tif')
    ),
    'missing label map': Case(
        'semantic', remove(LABELS), r"label map '.*2\.png' of the image '.*2\.jpg' cannot be", True
    ),
    'label map of another stem': Case(
        'semantic',
        lambda folder: (folder / LABELS).rename(folder / 'labels/2_label.png'),
        r"label map '.*2\.png' .*; '.*2_label\.png' belongs to no image",
        True,
    ),
    'truncated PNG of labels': Case(
        'semantic', edit_bytes(LABELS, half), r"labels/2\.png' cannot be read: .*[Tt]runcated", True
    ),
    'truncated image of labels': Case(
        'semantic', edit_bytes(IMAGE, half), r"images/2\.jpg' cannot be read: .*truncated", True
    ),
    'RGB label map': Case(
        'semantic', edit_image(LABELS, in_rgb), r"2\.png' has 3 channels, allowed"
    ),
    'palette read in color': Case(
        'semantic',
        edit_image(LABELS, with_palette),
        r"2\.png' has 3 channels, .*: set LoadAnnotations\(imdecode_backend='pillow'\)",
        settings=dict(
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', imdecode_backend='cv2'),
            ]
        ),
    ),
    'palette of many colors': Case(
        'semantic',
        edit_image(LABELS, lambda i: i.convert('RGB').quantize(64).point(lambda v: v + 30)),
        r"2\.png' has the value \d+ \(as it is loaded\), allowed: 0 to 3",
    ),
    'label beyond the classes': Case(
        'semantic',
        edit_labels(LABELS, lambda x: np.where(x == 3, 4, x)),
        r"2\.png' has the value 4",
    ),
    'labels of 16 bits': Case(
        'semantic',
        edit_labels(LABELS, lambda x: x.astype(np.uint16) + 256),
        r"2\.png' has the value 511, allowed: 0 to 255",
    ),
    'label map of another size': Case(
        'semantic',
        edit_labels(LABELS, lambda x: np.ascontiguousarray(x.T)),
        r"2\.png' has 32 x 48 pixels, its image 48 x 32 pixels",
    ),
    'masks of 0 and 255': Case(
        'semantic',
        edit_all_labels('labels', lambda x: np.where(x > 1, 255, 0).astype(np.uint8)),
        r"all 6 label maps, as '.*\.png', have no other value than 0 and 255",
    ),
    'zero label not reduced': Case(
        'semantic',
        edit_all_labels('labels', lambda x: np.where(x < 4, x + 1, x).astype(np.uint8)),
        r'\.png. has the value 4 .*; if 0 is no class, set reduce_zero_label=True',
    ),
    'ADE20K: value beyond 150': Case(
        'ade20k', edit_labels(ADE_LABELS, lambda x: x + np.uint8(1)), r"2\.png' has the value 150"
    ),
    'ADE20K: RGB label map': Case(
        'ade20k', edit_image(ADE_LABELS, in_rgb), r"2\.png' has 3 channels"
    ),
    'ADE20K: missing label map': Case(
        'ade20k', remove(ADE_LABELS), r"label map '.*2\.png' of", True
    ),
    'ADE20K: zero label reduced in one place': Case(
        'ade20k',
        lambda _: None,
        'reduce_zero_label is False in the dataset and True in LoadAnnotations',
        settings=dict(reduce_zero_label=False),
    ),
    'ADE20K: empty folder': Case(
        'ade20k', empty('images/training'), "ADE20KDataset: no image in '.*"
    ),
}
