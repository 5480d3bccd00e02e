"""The backbone in projects other than mmdet, mmseg and mmpretrain: docs/other_projects.md."""

import re
import sys
import types
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from swinv2_backbone import SwinTransformerV2

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs/other_projects.md').read_text()


def snippet(heading):
    """The Python code below a heading of the page."""
    return re.search(rf'^## {heading}.*?```python\n(.*?)```', PAGE, re.MULTILINE | re.DOTALL)[1]


@pytest.mark.parametrize('heading', ['torchvision', 'detectron2', 'Weights from a hub'])
def test_snippets_are_short(heading):
    statements = [line for line in snippet(heading).splitlines() if line.strip()]
    imports = [line for line in statements if re.match(r'from|import', line)]
    assert len(statements) - len(imports) < 15


def test_detectron2(monkeypatch):
    registered = {}
    modeling = types.ModuleType('detectron2.modeling')
    modeling.Backbone = nn.Module
    modeling.ShapeSpec = namedtuple('ShapeSpec', ['channels', 'stride'])
    modeling.BACKBONE_REGISTRY = types.SimpleNamespace(
        register=lambda: lambda made: registered.setdefault(made.__name__, made)
    )
    monkeypatch.setitem(sys.modules, 'detectron2', types.ModuleType('detectron2'))
    monkeypatch.setitem(sys.modules, 'detectron2.modeling', modeling)
    exec(snippet('detectron2'), {'__name__': 'snippet'})
    backbone = registered['SwinV2'](None, modeling.ShapeSpec(channels=3, stride=None))
    with torch.no_grad():
        maps = backbone.eval()(torch.rand(1, 3, 64, 96))
    assert {name: (x.shape[1], 64 / x.shape[2], 96 / x.shape[3]) for name, x in maps.items()} == {
        name: (shape.channels, shape.stride, shape.stride)
        for name, shape in backbone.output_shape().items()
    }


def test_weights_from_a_hub(tmp_path):
    torch.manual_seed(0)
    released = SwinTransformerV2(arch='tiny', window_size=8, pretrained_window_sizes=8)
    path = tmp_path / 'swinv2_tiny_patch4_window8_256.pth'
    torch.save({'model': released.state_dict()}, path)
    code, count = re.subn(r"'hf://\S+'", repr(str(path)), snippet('Weights from a hub'))
    assert count == 1
    scope = {}
    exec(code, scope)
    image = torch.rand(1, 3, 64, 64)
    released.set_window_size(16)
    with torch.no_grad():
        for ours, theirs in zip(scope['model'].eval()(image), released.eval()(image), strict=True):
            assert torch.equal(ours, theirs)


def test_mmpose():
    pytest.importorskip('mmpose.models', exc_type=ImportError)
    from mmengine.registry import init_default_scope
    from mmpose.registry import MODELS
    from mmpose.testing import get_packed_inputs

    cfg = Config.fromfile(ROOT / 'configs/pose/heatmap_swinv2_tiny_coco.py')
    init_default_scope('mmpose')
    del cfg.model.backbone.init_cfg
    model = MODELS.build(cfg.model)
    assert isinstance(model.backbone, SwinTransformerV2)
    batch = get_packed_inputs(2, num_keypoints=17, with_heatmap=True, img_shape=(256, 192))
    data = model.data_preprocessor(batch, training=True)
    loss = model.forward(**data, mode='loss')['loss_kpt']
    loss.backward()
    assert loss.isfinite()
    assert model.backbone.patch_embed.proj.weight.grad.abs().sum() > 0
    [first, _] = model.eval().forward(**model.data_preprocessor(batch), mode='predict')
    assert first.pred_instances.keypoints.shape == (1, 17, 2)
