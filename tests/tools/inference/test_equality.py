"""A segmentor in tiles computes what it computes of the whole image, away from their borders."""

import pytest
import torch

for toolbox in ('mmcv', 'mmseg'):
    pytest.importorskip(toolbox)

from mmengine.registry import MODELS, DefaultScope

from tests.helpers.models import randomize_parameters
from tests.helpers.tolerance import assert_equal_to_rounding
from tools.inference.tiles import tiles_of

# How far a pixel's logits reach, in pixels, in two stages with windows of 4 tokens and a block with
# shifted windows in each: two windows of 16 pixels, two of 32, a token of 8 for the convolution of
# 3 x 3, and one for the interpolation. Patches, merging and windows begin at multiples of 32 in
# image and tiles.
REACH = 2 * 16 + 2 * 32 + 8 + 8
HEIGHT, WIDTH, TILE = 640, 416, 384


@pytest.fixture(scope='module')
def segmentor():
    import mmseg.models  # noqa: F401

    arch = dict(embed_dims=8, depths=(2, 2, 1, 1), num_heads=(1, 2, 2, 2))
    cfg = dict(
        type='EncoderDecoder',
        backbone=dict(type='swinv2_backbone.SwinTransformerV2', arch=arch, window_size=4),
        decode_head=dict(
            type='FCNHead', in_channels=16, in_index=1, channels=8, num_convs=1, num_classes=3,
            concat_input=False, norm_cfg=dict(type='BN'), align_corners=False,
        ),
        test_cfg=dict(mode='whole'),
    )  # fmt: skip
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg)
    randomize_parameters(model.backbone)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)  # mmseg's are near 0
    return model.double().eval()


@torch.no_grad()
def logits(model, image, tiles):
    """Of an image ``(1, 3, H, W)``, put together from its tiles: ``(3, H, W)``."""
    found = torch.full((3, *image.shape[2:]), torch.nan, dtype=image.dtype)
    for tile in tiles:
        part = image[(..., *tile.outer)]
        meta = dict(img_shape=part.shape[2:])
        found[(..., *tile.own)] = model.encode_decode(part, [meta])[0][(..., *tile.own_inside)]
    return found


@pytest.fixture(scope='module')
def whole(segmentor):
    image = torch.randn(1, 3, HEIGHT, WIDTH, dtype=torch.float64)
    return image, logits(segmentor, image, tiles_of(HEIGHT, WIDTH, None, 0))


def test_equal_everywhere_if_half_of_the_overlap_is_the_reach(segmentor, whole):
    image, expected = whole
    tiles = tiles_of(HEIGHT, WIDTH, TILE, 256)  # 256 / 2 >= 112; stride 128
    assert REACH <= 128
    assert len(tiles) > 4
    assert_equal_to_rounding(logits(segmentor, image, tiles), expected)


def test_equal_beyond_the_reach_and_only_there(segmentor, whole):
    image, expected = whole
    tiles = tiles_of(HEIGHT, WIDTH, TILE, 32)
    found = logits(segmentor, image, tiles)
    far = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    for tile in tiles:
        (top, bottom), (left, right) = tile.rows[:2], tile.columns[:2]
        rows = slice(top + REACH * (top > 0), bottom - REACH * (bottom < HEIGHT))
        columns = slice(left + REACH * (left > 0), right - REACH * (right < WIDTH))
        inside = torch.zeros_like(far)
        inside[rows, columns] = True
        far[tile.own] = inside[tile.own]
    assert 0 < far.sum() < far.numel()
    assert_equal_to_rounding(found[:, far], expected[:, far])
    # At the cuts the overlap of 32 pixels is too little: there they differ by far more.
    assert (found - expected).abs()[:, ~far].max() > 1e-3 * expected.abs().max()
