"""torchvision's Mask R-CNN over our backbone, as docs/other_projects.md has it."""

import pytest
import torch

from tests.test_other_projects import snippet
from tools.benchmarking.implementations import declare_torchvision_operators


@pytest.fixture
def operators(monkeypatch):
    """Lets mmcv's operators stand for torchvision's, which PyPI has for CUDA alone."""
    declare_torchvision_operators()
    pytest.importorskip('torchvision')
    ops = pytest.importorskip('mmcv.ops')
    import torchvision

    def nms(boxes, scores, threshold):
        return ops.nms(boxes, scores, threshold)[1]

    def roi_align(features, boxes, output_size, spatial_scale, sampling_ratio=-1, aligned=False):
        return ops.roi_align(
            features, boxes, output_size, spatial_scale, sampling_ratio, 'avg', aligned
        )

    monkeypatch.setattr(torchvision.ops.boxes, 'nms', nms)
    monkeypatch.setattr(torchvision.ops.poolers, 'roi_align', roi_align)
    monkeypatch.setattr(torchvision.models.detection.roi_heads, 'roi_align', roi_align)


def test_one_training_step_and_one_prediction(operators):
    torch.manual_seed(0)
    scope = {'__name__': 'snippet'}
    exec(snippet('torchvision').replace('num_classes=91', 'num_classes=3, min_size=96'), scope)
    model = scope['model']
    masks = torch.zeros(1, 96, 96, dtype=torch.uint8)
    masks[0, 20:70, 10:60] = 1
    target = dict(
        boxes=torch.tensor([[10.0, 20.0, 60.0, 70.0]]), labels=torch.tensor([1]), masks=masks
    )
    losses = model([torch.rand(3, 96, 96)], [target])
    assert set(losses) >= {'loss_classifier', 'loss_box_reg', 'loss_mask'}
    sum(losses.values()).backward()
    gradient = model.backbone.body.patch_embed.proj.weight.grad
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        [found] = model.eval()([torch.rand(3, 90, 120)])
    assert found['masks'].shape[1:] == (1, 90, 120)
