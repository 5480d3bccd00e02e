"""Exported detectors find what mmdet's own models find."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

for needed in ('mmcv', 'mmdet'):
    pytest.importorskip(needed)

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from tests.helpers.models import randomize_parameters
from tests.helpers.scripts import call, error_line
from tools.deployment import export
from tools.utils.detections import compare_detections, to_instances, torch_detections
from tools.utils.detectors import Detector
from tools.utils.errors import UserError
from tools.utils.runtimes import keep_regions_in_float32

IMAGE = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(0)) * 4 - 2
PADDED = F.pad(IMAGE[:, :, :80, :44], (0, 20, 0, 16))


def build(tasks, **changes):
    """The small Mask R-CNN with random weights, whose boxes are of all sizes and overlap."""
    cfg = Config.fromfile(tasks.configs['detection'])
    cfg.merge_from_dict(changes)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model).eval()
    torch.manual_seed(0)
    randomize_parameters(model)
    return model


SETTINGS = {
    'as configured': {},
    'one box per region for all classes': {'model.roi_head.bbox_head.reg_class_agnostic': True},
    'one mask for all classes': {'model.roi_head.mask_head.class_agnostic': True},
    'suppression across classes': {'model.test_cfg.rcnn.nms.class_agnostic': True},
    'few regions': {'model.test_cfg.rpn.nms_pre': 7, 'model.test_cfg.rpn.min_bbox_size': 9},
    'a high threshold': {'model.test_cfg.rcnn.score_thr': 0.9999},
}


@pytest.mark.parametrize('image', [IMAGE, PADDED], ids=['whole', 'padded'])
@pytest.mark.parametrize('changes', SETTINGS.values(), ids=SETTINGS)
def test_the_graph_is_mmdets_test(tasks, changes, image):
    """The same operations in the same order: equal but for how batches are summed."""
    detector = Detector(build(tasks, **changes))
    with torch.no_grad():
        found, expected = detector(image), torch_detections(detector, image)
    assert len(found[0]) > 0 or changes == SETTINGS['a high threshold']
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('pad_value', [0, -3])
def test_padding_is_no_part_of_the_image(tasks, pad_value):
    detector = Detector(build(tasks, **{'model.data_preprocessor.pad_value': pad_value}))
    assert tuple(map(int, detector.size(torch.where(PADDED == 0, pad_value, PADDED)))) == (80, 44)


@pytest.mark.parametrize('rescale', [False, True])
@pytest.mark.parametrize(('image', 'size'), [(IMAGE, (96, 64)), (PADDED, (80, 44))])
def test_detections_become_those_of_mmdet(tasks, image, size, rescale):
    """Boxes and pasted masks, scaled back to the image as it was."""
    from mmdet.structures import DetDataSample

    model = build(tasks)
    original = size[0] // 2, size[1] * 2
    meta = dict(img_shape=size, ori_shape=original, scale_factor=(0.5, 2.0))
    with torch.no_grad():
        (sample,) = model.predict(image, [DetDataSample(metainfo=meta)], rescale)
        found = to_instances(model, Detector(model)(image), meta, rescale)
    expected = sample.pred_instances
    assert len(found) == len(expected) > 0
    for name in ('bboxes', 'scores', 'labels'):
        torch.testing.assert_close(found[name], expected[name])
    # (A probability of 0.5 may be on the other side.)
    assert found.masks.shape == expected.masks.shape
    assert found.masks.shape[1:] == (original if rescale else size)
    assert (found.masks != expected.masks).float().mean() < 1e-3


@pytest.mark.slow  # Half a minute each.
@pytest.mark.parametrize('form', ['onnx', 'openvino'])
def test_a_whole_detector_is_exported(tasks, tmp_path, capsys, form):
    pytest.importorskip('onnxscript')
    pytest.importorskip({'onnx': 'onnxruntime'}.get(form, form))
    files = tasks.configs['detection'], tasks.checkpoints['detection']
    out = tmp_path / {'onnx': 'model.onnx', 'openvino': 'model.xml'}[form]
    call(export.main, *files, '--format', form, '--out', out, '--size', 96, 64)
    assert 'boxes, scores, labels, masks, takes 96 x 64' in capsys.readouterr().out


def test_openvino_does_not_round_the_regions(tmp_path):
    openvino = pytest.importorskip('openvino')
    from openvino import opset15 as op

    regions = op.parameter([3, 4], np.float32)
    maps = op.convolution(
        op.parameter([1, 1, 32, 32], np.float32),
        op.constant(np.ones((1, 1, 1, 1), np.float32)),
        *([1, 1], [0, 0], [0, 0], [1, 1]),
    )
    aligned = op.roi_align(
        maps,
        op.multiply(regions, op.constant(np.float32(1.1))),
        op.constant(np.zeros(3, np.int32)),
        *(2, 2, 2, 1.0, 'avg'),
    )
    # (Operations after the last convolution are in float32 in any case.)
    out = op.convolution(
        aligned, op.constant(np.ones((1, 1, 1, 1), np.float32)), *([1, 1], [0, 0], [0, 0], [1, 1])
    )
    image = maps.input_value(0).get_node()
    path = tmp_path / 'model.xml'
    openvino.save_model(openvino.Model([out], [image, regions]), path, compress_to_fp16=False)
    core = openvino.Core()

    def precision():
        compiled = core.compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'bf16'})
        infos = [each.get_rt_info() for each in compiled.get_runtime_model().get_ops()]
        found = {each['layerType'].value: each['runtimePrecision'].value for each in infos}
        return found['ROIAlign']

    before = precision()
    keep_regions_in_float32(path)
    assert path.read_text().count('"precise"') == 2
    assert precision() == 'f32'
    if 'BF16' in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        assert before == 'bf16'


class Found:
    """Stands for a file that finds these detections."""

    def __init__(self, *detections):
        self.detections = detections

    def __call__(self, image):
        return self.detections


def test_differences_are_noticed(tasks, monkeypatch):
    detector = Detector(build(tasks))
    boxes, scores, labels, masks = torch_detections(detector, IMAGE)

    def compare(precision, *detections):
        monkeypatch.setattr('tools.utils.detections.load_exported', lambda path: Found(*detections))
        return compare_detections(detector, [IMAGE], Path('x'), precision, 1e-4)

    for precision in ('fp32', 'bf16'):
        compare(precision, boxes, scores, labels, masks)
        compare(precision, *(x.flip(0) for x in (boxes, scores, labels, masks)))
        with pytest.raises(UserError, match=r'of \d+ detections are as in torch'):
            compare(precision, boxes, scores, labels + 1, masks)
        with pytest.raises(UserError, match='it was not kept'):
            compare(precision, boxes / 2, scores, labels, masks)
    for others in (
        (boxes, scores * 0.999, labels, masks),
        (boxes, scores, labels, masks + 0.01),
        (boxes[1:], scores[1:], labels[1:], masks[1:]),
    ):
        with pytest.raises(UserError, match='it was not kept'):
            compare('fp32', *others)


def test_nothing_to_compare_is_an_error(tasks, monkeypatch):
    detector = Detector(build(tasks, **SETTINGS['a high threshold']))
    detections = torch_detections(detector, IMAGE)
    assert len(detections[0]) == 0
    monkeypatch.setattr('tools.utils.detections.load_exported', lambda path: Found(*detections))
    with pytest.raises(UserError, match='nothing was detected'):
        compare_detections(detector, [IMAGE], Path('x'), 'fp32', 1e-4)


REFUSED = {
    'soft NMS': ({'model.test_cfg.rcnn.nms.type': 'soft_nms'}, 'as test_cfg.rcnn.nms, allowed: ty'),
    'no limit': ({'model.test_cfg.rpn.max_per_img': -1}, 'test_cfg.rpn.max_per_img is missing'),
    'another extractor': (
        {'model.roi_head.bbox_roi_extractor.type': 'GenericRoIExtractor'},
        'got GenericRoIExtractor as roi_head.bbox_roi_extractor, allowed: SingleRoIExtractor',
    ),
}


@pytest.mark.parametrize(('changes', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_refused(tasks, changes, message):
    with pytest.raises(UserError, match=message):
        Detector(build(tasks, **changes))


def test_other_formats_are_refused(tasks, tmp_path, capsys):
    files, out = (tasks.configs['detection'], tasks.checkpoints['detection']), tmp_path / 'x.pt'
    message = error_line(capsys, export.main, *files, '--format', 'torchscript', '--out', out)
    assert 'got torchscript with --batch 1, allowed for a detector: onnx or openvino' in message


def test_other_opsets_are_refused(tasks, tmp_path, capsys):
    files, out = (tasks.configs['detection'], tasks.checkpoints['detection']), tmp_path / 'x.onnx'
    message = error_line(capsys, export.main, *files, '--opset', 23, '--out', out)
    assert '--opset: got 23, allowed for a detector: 20' in message
