"""Detections of tiles: run lengths of masks, and one object found twice."""

import numpy as np
import pytest
import torch

pytest.importorskip('mmcv')
cv2 = pytest.importorskip('cv2')
coco_mask = pytest.importorskip('pycocotools.mask')

from mmengine.structures import InstanceData

from tools.inference.detection import (
    Detections,
    MaskCrop,
    coco_results,
    encode,
    merge,
    of_tile,
    touches_inner_border,
)
from tools.inference.tiles import tiles_of


@pytest.mark.parametrize('place', [(0, 0, 9, 7), (3, 2, 4, 5), (0, 1, 9, 3), (8, 6, 1, 1)])
def test_run_lengths_of_a_crop_are_those_of_the_whole_mask(place):
    top, left, height, width = place
    generator = np.random.default_rng(0)
    for density in (0.5, 1.0):
        pixels = generator.random((height, width)) < density
        mask = np.zeros((9, 7), np.uint8)
        mask[top : top + height, left : left + width] = pixels
        rle = encode(MaskCrop(top, left, pixels), 9, 7)
        assert (coco_mask.decode(rle) == mask).all()
        assert coco_mask.area(rle) == mask.sum()


def test_a_mask_without_pixels_is_encoded():
    rle = encode(MaskCrop(0, 0, np.zeros((0, 0), bool)), 9, 7)
    assert coco_mask.decode(rle).sum() == 0


def detections(*boxes, scores=None, labels=None):
    scores = scores or [0.5] * len(boxes)
    labels = labels or [0] * len(boxes)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.tensor(scores), torch.tensor(labels))


# Two tiles side by side of an image of 60 x 100: columns 0 to 60 and 40 to 100.
TILES = tiles_of(60, 100, 60, 20)


def merged(left, right):
    parts = [left, right]
    cut = [touches_inner_border(p.boxes, t, 60, 100) for p, t in zip(parts, TILES, strict=True)]
    return merge(parts, cut)


def test_only_borders_inside_of_the_image_cut_objects():
    assert [tile.outer[1] for tile in TILES] == [slice(0, 60), slice(40, 100)]
    boxes = torch.tensor([[0, 0, 9, 9], [50, 20, 60, 30], [30, 50, 40, 60.0]])
    assert touches_inner_border(boxes, TILES[0], 60, 100).tolist() == [False, True, False]
    boxes = torch.tensor([[40, 0, 59, 9], [90, 20, 100, 30], [60, 50, 70, 60.0]])
    assert touches_inner_border(boxes, TILES[1], 60, 100).tolist() == [True, False, False]


def test_an_object_that_a_border_cuts_is_taken_from_the_neighbor():
    # The part has the higher score, and too little in common with the whole for NMS.
    found = merged(
        detections([52, 10, 60, 30], scores=[0.9]), detections([52, 10, 90, 30], scores=[0.4])
    )
    assert found.boxes.tolist() == [[52, 10, 90, 30]]


def test_a_part_stays_where_no_tile_has_the_whole_object():
    found = merged(detections([10, 10, 60, 30]), detections([40, 10, 90, 30]))
    assert sorted(found.boxes.tolist()) == [[10, 10, 60, 30], [40, 10, 90, 30]]
    other_class = detections([52, 10, 90, 30], labels=[1])
    assert len(merged(detections([52, 10, 60, 30]), other_class).boxes) == 2


def test_an_object_in_both_tiles_is_found_once_with_its_mask():
    left = detections([42, 10, 55, 30], [5, 5, 9, 9], scores=[0.6, 0.3])
    right = detections([43, 10, 55, 30], scores=[0.7])
    crops = [MaskCrop(index, 42, np.ones((2, 3), bool)) for index in range(3)]
    found = merged(left._replace(masks=crops[:2]), right._replace(masks=crops[2:]))
    assert found.boxes.tolist() == [[43, 10, 55, 30], [5, 5, 9, 9]]
    assert [mask.top for mask in found.masks] == [2, 1]
    assert len(merged(detections(), detections()).boxes) == 0


def test_records_are_in_the_results_format_of_coco():
    found = detections([42, 10, 55, 30], scores=[0.5], labels=[3])
    assert coco_results(found, 7, 60, 100) == [
        dict(image_id=7, category_id=4, bbox=[42, 10, 13, 20], score=0.5)
    ]


def discs(height, width):
    """A map of discs of 9 to 31 pixels that do not touch: 255 or 254, their class; 0 elsewhere."""
    generator = np.random.default_rng(0)
    canvas = np.zeros((height, width), np.uint8)
    for y in range(20, height, 40):
        for x in range(20, width, 40):
            radius = int(generator.integers(4, 16))
            center = [int(c + generator.integers(-3, 4)) for c in (x, y)]
            cv2.circle(canvas, center, radius, int(generator.integers(254, 256)), -1)
    return canvas


def perfect_detector(pixels):
    """The connected parts of a map, or of a tile of it: what a flawless detector would find."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=4)
    masks = [parts == index for index in range(1, len(stats))]
    return InstanceData(
        bboxes=torch.tensor([[x, y, x + w, y + h] for x, y, w, h, _ in stats[1:].tolist()]),
        labels=torch.tensor([255 - int(pixels[mask][0]) for mask in masks]),
        # Larger parts score higher, so no result is due to the order.
        scores=torch.tensor([mask.sum() for mask in masks], dtype=torch.float64) / 1e4,
        masks=torch.from_numpy(np.array(masks)),
    )


@pytest.mark.parametrize(('tile', 'overlap'), [(128, 40), (200, 64), (100, 60)])
def test_what_a_perfect_detector_finds_in_tiles_is_what_it_finds_in_the_image(tile, overlap):
    """For objects that fit into the overlap, with a margin of 2 pixels at both ends."""
    pixels = discs(430, 370)

    def found(side):
        tiles = tiles_of(*pixels.shape, side, overlap)
        parts = [of_tile(perfect_detector(pixels[each.outer]), 0, each) for each in tiles]
        cut = [
            touches_inner_border(part.boxes, each, *pixels.shape)
            for part, each in zip(parts, tiles, strict=True)
        ]
        assert side is None or sum(each.sum() for each in cut) > 20
        records = coco_results(merge(parts, cut), 0, *pixels.shape)
        return sorted(records, key=lambda record: record['bbox'])

    assert found(tile) == found(None)
    assert len(found(None)) > 80
