"""Checks of annotations in COCO's format, all of them, before an image is read."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.dataset import BaseDataset

from tools.data.faults import CROWDS, Fault
from tools.data.folder_checks import missing_images
from tools.data.mask_checks import mask_problems, short
from tools.utils.errors import UserError, first_line

_NUMBER = (int, float)
_FIELDS = {
    'images': dict(id=(int, str), file_name=(str,), width=_NUMBER, height=_NUMBER),
    'categories': dict(id=(int,), name=(str,)),
    'annotations': dict(
        id=(int, str), image_id=(int, str), category_id=(int,), bbox=(list,), area=_NUMBER
    ),
}
_NAMES = dict(images='image', categories='category', annotations='annotation')


def read_coco(path: Path | str) -> Any:
    """The content of an annotation file, local or of a server that mmengine can read.

    Raises:
        UserError: If it cannot be read or is no JSON.
    """
    try:
        return json.loads(fileio.get(str(path)))
    except (OSError, ValueError) as error:
        raise UserError(describe_unreadable_annotations(path, error)) from error


def describe_unreadable_annotations(path: Path | str, error: Exception) -> str:
    """A line about an annotation file that cannot be read."""
    reason = getattr(error, 'strerror', None) or f'no JSON: {first_line(error)}'
    if Path(path).is_file() and Path(path).stat().st_size == 0:
        reason = 'the file is empty'
    return f"annotation file '{path}' cannot be read ({reason}): copy or export it again"


def coco_faults(data: Any, path: Path, masks: bool, labeled: bool) -> list[Fault]:
    """What is wrong in the content of an annotation file.

    Args:
        data: The parsed file.
        path: The file, for messages.
        masks: Whether the masks of the objects are read.
        labeled: Whether the images must have annotations, as those of a training.
    """
    return _CocoChecks(path).run(data, masks, labeled)


class _CocoChecks:
    """The checks of one file. Columns are compared at once: COCO has 860,001 annotations."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[Fault] = []

    def add(self, kind: str, text: str, is_error: bool = True) -> None:
        self.faults.append(Fault(kind, f"'{self.path}': {text}", is_error))

    def run(self, data: Any, masks: bool, labeled: bool) -> list[Fault]:
        if not isinstance(data, dict):
            found = type(data).__name__
            self.add(
                'no COCO format',
                f'a {found}, and not a dict with the lists images, annotations and categories',
            )
            return self.faults
        lists = {}
        for key in _FIELDS:
            entries = data.get(key)
            required = labeled or key != 'annotations'
            if not isinstance(entries, list) or (required and not entries):
                what = 'an empty list' if entries == [] else f'{type(entries).__name__}'
                what = what if key in data else 'missing'
                text = f'`{key}` is {what}, and must be a list of dicts: export the file again'
                self.add('no COCO format', text, required)
                entries = []
            lists[key] = self.complete(key, entries)
        self.check_images(lists['images'])
        self.check_categories(lists['categories'])
        self.check_annotations(lists, masks)
        return self.faults

    def complete(self, key: str, entries: list) -> list[dict]:
        """The entries that have all fields, of the right type; the others are faults."""
        fields = _FIELDS[key]
        kept = [e for e in entries if isinstance(e, dict) and fields.keys() <= e.keys()]
        if len(kept) < len(entries):
            for index, entry in enumerate(entries):
                missing = fields.keys() - entry.keys() if isinstance(entry, dict) else fields
                if missing:
                    which = f'entry {index} of `{key}`'
                    lacking = ', '.join(f'`{f}`' for f in fields if f in missing)
                    self.add('missing fields', f'{which} lacks {lacking}: add what is missing')
        for field, types in fields.items():
            if {type(entry[field]) for entry in kept} <= set(types):
                continue
            for entry in kept:
                if type(entry[field]) not in types:
                    allowed = ' or '.join(kind.__name__ for kind in types)
                    got = short(entry[field])
                    text = f'{_NAMES[key]} {entry["id"]}: `{field}` is {got}, allowed: {allowed}'
                    self.add('fields of another type', text)
            kept = [entry for entry in kept if type(entry[field]) in types]
        return kept

    def check_unique(self, kind: str, values: list, what: str, advice: str) -> None:
        if len(set(values)) < len(values):
            for value, number in Counter(values).items():
                if number > 1:
                    self.add(kind, f'{what} {value!r} is there {number} times: {advice}')

    def check_images(self, images: list[dict]) -> None:
        self.check_unique(
            'duplicate image ids',
            [image['id'] for image in images],
            'image id',
            'give each image an id of its own',
        )
        self.check_unique(
            'duplicate file names',
            [image['file_name'] for image in images],
            'file_name',
            'merge the entries (objects of one would be background in the other)',
        )
        for image in images:
            width, height = image['width'], image['height']
            if not (0 < width < np.inf and 0 < height < np.inf):
                text = f"image '{image['file_name']}' has width {width} and height {height}"
                self.add('impossible image sizes', f'{text}: write those of the file')

    def check_categories(self, categories: list[dict]) -> None:
        for field in ('id', 'name'):
            self.check_unique(
                'duplicate categories',
                [category[field] for category in categories],
                f'category {field}',
                f'give each category {"an id" if field == "id" else "a name"} of its own',
            )

    def check_annotations(self, lists: dict[str, list[dict]], masks: bool) -> None:
        annotations = lists['annotations']
        self.check_unique(
            'duplicate annotation ids',
            [annotation['id'] for annotation in annotations],
            'annotation id',
            'number the annotations anew',
        )
        categories = {category['id'] for category in lists['categories']}
        if not {annotation['category_id'] for annotation in annotations} <= categories:
            for each in annotations:
                if each['category_id'] not in categories:
                    self.add(
                        'unknown categories',
                        f'annotation {each["id"]}: category_id {each["category_id"]} is none of '
                        f'`categories` ({short(sorted(categories))}): mend it, or list it',
                    )
        sizes = {image['id']: (image['width'], image['height']) for image in lists['images']}
        known = [each for each in annotations if each['image_id'] in sizes]
        if len(known) < len(annotations):
            for each in annotations:
                if each['image_id'] not in sizes:
                    self.add(
                        'annotations without image',
                        f'annotation {each["id"]}: image_id {each["image_id"]!r} is none of '
                        '`images`: add the image, or take the annotation out',
                    )
        self.check_boxes(known, sizes)
        if masks:
            self.check_masks(known, sizes)
        for each in known:
            if each.get('iscrowd'):
                text = f'annotation {each["id"]} is a crowd, which is no target of the training'
                self.add(CROWDS, text, is_error=False)

    def check_boxes(self, annotations: list[dict], sizes: dict) -> None:
        try:
            boxes = np.array([annotation['bbox'] for annotation in annotations])
        except ValueError:  # Of several lengths.
            boxes = np.empty(0)
        if annotations and (boxes.shape[1:] != (4,) or boxes.dtype.kind not in 'iuf'):
            for each in annotations:
                if not _is_box(each['bbox']):
                    got = short(each['bbox'])
                    text = f'annotation {each["id"]}: bbox is {got}, allowed: 4 numbers'
                    self.add('boxes that are not 4 numbers', text)
            annotations = [each for each in annotations if _is_box(each['bbox'])]
            boxes = np.array([annotation['bbox'] for annotation in annotations], float)
        if not annotations:
            return
        x, y, w, h = boxes.T.astype(float)
        image_w, image_h = np.array([sizes[a['image_id']] for a in annotations], float).T
        area = np.array([annotation['area'] for annotation in annotations], float)
        finite = np.isfinite(boxes).all(1) & np.isfinite(area)
        negative = finite & ((w < 0) | (h < 0))
        fine = finite & ~negative
        empty = fine & ((w < 1) | (h < 1) | (area <= 0))
        fine &= ~empty
        outside = fine & ((x >= image_w) | (y >= image_h) | (x + w <= 0) | (y + h <= 0))
        over = (x < -1) | (y < -1) | (x + w > image_w + 1) | (y + h > image_h + 1)
        form = 'a box is x, y, width, height in pixels'
        for mask, kind, text, is_error in (
            (~finite, 'boxes that are not finite', 'is not finite: mend it', True),
            (negative, 'negative boxes', f'has a negative side: {form}', True),
            (empty, 'boxes without area', 'has no area: mmdet leaves it out', False),
            (outside, 'boxes outside of the image', f'lies outside of it: {form}', True),
            (
                fine & ~outside & over,
                'boxes over the border',
                f'reaches over its border: {form}',
                False,
            ),
        ):
            for index in np.flatnonzero(mask):
                each = annotations[index]
                size = ' x '.join(map(str, sizes[each['image_id']]))
                where = f'annotation {each["id"]}: box {each["bbox"]} (area {each["area"]})'
                self.add(kind, f'{where} of an image of {size} pixels {text}', is_error)

    def check_masks(self, annotations: list[dict], sizes: dict) -> None:
        masks = [each.get('segmentation') for each in annotations]
        image_sizes = [sizes[each['image_id']] for each in annotations]
        for index, kind, text in mask_problems(masks, image_sizes):
            self.add(kind, f'annotation {annotations[index]["id"]}: {text}')


def _is_box(box: list) -> bool:
    return len(box) == 4 and all(type(number) in _NUMBER for number in box)


def image_files(data: Any, folder: str) -> list[dict]:
    """What is read of each image that has all fields, as mmdet names it."""
    images = data.get('images') if isinstance(data, dict) else None
    fields = _FIELDS['images']
    return [
        dict(
            img_path=os.path.join(folder, image['file_name']),
            height=image['height'],
            width=image['width'],
        )
        for image in (images if isinstance(images, list) else ())
        if isinstance(image, dict)
        and fields.keys() <= image.keys()
        and isinstance(image['file_name'], str)
    ]


def dataset_faults(dataset: BaseDataset, data: Any) -> list[Fault]:
    """What is wrong in the annotations of mmdet's CocoDataset, and images that are missing.

    Args:
        dataset: It need not have read its annotations.
        data: The content of its annotation file.
    """
    masks = any(getattr(step, 'with_mask', False) for step in dataset.pipeline.transforms)
    faults = coco_faults(data, dataset.ann_file, masks, labeled=not dataset.test_mode)
    paths = [info['img_path'] for info in image_files(data, dataset.data_prefix['img'])]
    return faults + missing_images(paths, f"'{dataset.ann_file}'")
