"""compute_in_bfloat16: mmdet's and mmseg's inference with the backbone alone in bfloat16."""

import pytest
import torch

from swinv2_backbone import SwinTransformerV2, compute_in_bfloat16
from tests.helpers.models import SMALL_ARCH, randomize_parameters
from tests.helpers.scripts import ROOT


@torch.no_grad()
def test_maps_are_those_of_autocast_in_float32():
    model = SwinTransformerV2(SMALL_ARCH, window_size=4, drop_path_rate=0.0)
    randomize_parameters(model).eval()
    image = torch.randn(1, 3, 70, 64)
    exact = model(image)
    with torch.autocast('cpu', torch.bfloat16):
        expected = model(image)
    found = compute_in_bfloat16(model)(image)
    assert {each.dtype for each in found} == {torch.float32}
    torch.testing.assert_close(found, tuple(x.float() for x in expected), rtol=0, atol=0)
    assert not any(torch.equal(a, b) for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize('task', ['segmentation', 'detection'])
def test_predictions_of_the_toolboxes(task):
    pytest.importorskip('mmseg' if task == 'segmentation' else 'mmdet')
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    if task == 'segmentation':
        from mmseg.apis import inference_model as predict
        from mmseg.apis import init_model as init

        name, scope = 'upernet', 'mmseg'
    else:
        from mmdet.apis import inference_detector as predict
        from mmdet.apis import init_detector as init

        name, scope = 'mask-rcnn', 'mmdet'
    (file,) = (ROOT / 'configs' / task).glob(f'{name.replace("-", "_")}_swinv2_tiny_shapes.py')
    cfg = Config.fromfile(file)
    with DefaultScope.overwrite_default_scope(scope):
        model = init(cfg, device='cpu')
        compute_in_bfloat16(model.backbone)
        image = torch.randint(256, (64, 96, 3), dtype=torch.uint8).numpy()
        sample = predict(model, image)
    if task == 'segmentation':
        assert sample.seg_logits.data.dtype == torch.float32
        assert sample.seg_logits.data.isfinite().all()
    else:
        assert sample.pred_instances.masks.shape[1:] == (64, 96)
        assert sample.pred_instances.bboxes.isfinite().all()


def test_a_whole_model_is_refused():
    with pytest.raises(TypeError, match='backbone: got Sequential, allowed: a SwinTransformerV2'):
        compute_in_bfloat16(torch.nn.Sequential())
