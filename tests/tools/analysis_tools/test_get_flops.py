"""tools/analysis_tools/get_flops.py: the published numbers, and what is counted."""

import re

import pytest
import torch
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers.scripts import ROOT, call, error_line
from tools.utils.complexity import measure_complexity

SEGFORMER = ROOT / 'configs/segmentation/segformer_swinv2_tiny_ade20k.py'
# Two rows of the table: parameters in millions and multiply-adds in thousands of millions.
ROW = r'^{}\s+([\d.]+) M\s+([\d.]+) G$'


@pytest.fixture(autouse=True)
def toolboxes():
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')


def rows(text):
    return {
        part: tuple(map(float, re.search(ROW.format(part), text, re.MULTILINE).groups()))
        for part in ('backbone', 'model')
    }


def test_the_backbone_has_the_published_size(capsys):
    """27.58 M: the classifier's 28.35 M (the paper, table 12), less its 0.77 M."""
    from tools.analysis_tools import get_flops

    call(get_flops.main, SEGFORMER, '--size', 256, 256)
    assert rows(capsys.readouterr().out)['backbone'] == (27.58, 5.9)


def test_the_classifier_has_the_published_size(capsys):
    pytest.importorskip('mmpretrain')
    from tools.analysis_tools import get_flops

    call(get_flops.main, ROOT / 'configs/classification/swinv2_tiny_in1k.py')
    assert rows(capsys.readouterr().out)['model'] == (28.35, 5.9)


def test_the_size_is_that_of_the_test():
    from tools.zoo.facts import image_size, load

    assert image_size(load('detection/dino_swinv2_tiny_coco')) == (800, 1333)
    assert image_size(load('segmentation/upernet_swinv2_tiny_640_ade20k')) == (640, 640)
    assert image_size(load('segmentation/upernet_swinv2_tiny_cityscapes')) == (512, 1024)
    assert image_size(load('classification/swinv2_tiny_w16_in1k')) == (512, 512)
    assert image_size(load('detection/mask_rcnn_swinv2_tiny_nuclei')) == (256, 256)


def test_attention_of_the_heads_is_counted():
    """Also where torch has fused operators for it: one layer of Mask2Former's decoder, by hand."""
    cfg = Config.fromfile(ROOT / 'configs/segmentation/mask2former_swinv2_tiny_ade20k.py')
    cfg.model.backbone.arch = dict(embed_dims=96, depths=(1, 1, 1, 1), num_heads=(3, 6, 12, 24))
    cfg.model.decode_head.pixel_decoder.encoder.num_layers = 1
    counts = []
    for layers in (1, 4):
        cfg.model.decode_head.transformer_decoder.num_layers = layers
        counts.append(measure_complexity(cfg, (64, 64))['model'].multiply_adds)
    queries, width, hidden, classes = 100, 256, 2048, 151
    # Layers 2, 3 and 4 attend to the maps of strides 16, 8 and 32.
    by_hand = 0
    for keys in (4**2, 8**2, 2**2):
        by_hand += 2 * queries * width * hidden  # the two layers of the MLP
        by_hand += 2 * queries * width**2 + 2 * keys * width**2  # cross-attention: q, out; k, v
        by_hand += 4 * queries * width**2  # self-attention
        by_hand += 2 * queries * width * (keys + queries)  # both products of both attentions
        by_hand += queries * width * classes + 3 * queries * width**2  # class, mask embedding
        by_hand += queries * width * 16**2  # masks, on the map of stride 4
    assert counts[1] - counts[0] == by_hand


def test_a_mask_head_runs_on_as_many_detections_as_are_returned():
    cfg = Config.fromfile(ROOT / 'configs/detection/mask_rcnn_swinv2_tiny_shapes.py')
    counts = []
    for detections in (1, 11):
        cfg.model.test_cfg.rcnn.max_per_img = detections
        counts.append(measure_complexity(cfg, (128, 128))['model'].multiply_adds)
    from tools.utils.example_batch import build_model

    head = build_model(cfg).roi_head.mask_head.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        head(torch.zeros(10, 64, 14, 14))
    assert counts[1] - counts[0] == counter.get_total_flops() // 2


def test_a_mistake_ends_in_one_line(capsys):
    from tools.analysis_tools import get_flops

    message = error_line(capsys, get_flops.main, SEGFORMER, '--size', 0, 64)
    assert "--size: got '0', allowed: an integer of at least 1" in message
