"""Parameters and multiply-adds of the model of a config."""

import copy
from typing import NamedTuple

import torch
from mmengine.config import Config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tools.utils.example_batch import build_model, example_batch


class Complexity(NamedTuple):
    """Of a part of a model.

    Attributes:
        parameters: The number of its parameters.
        multiply_adds: Of its convolutions and matrix products, for one image.
    """

    parameters: int
    multiply_adds: int


def measure_complexity(cfg: Config, size: tuple[int, int]) -> dict[str, Complexity]:
    """The complexity of the backbone, and of the whole model, for an image of a size in pixels.

    Counted while the model runs, by torch's counter, for which the fused attention has a formula.
    (mmengine's counter traces the model with torch.jit; it has no formula for torch's own attention
    in the heads of DINO and Mask2Former, and cannot trace mmseg's Mask2Former.) The model predicts:
    with a sliding window if its test has one, and with as many detections as a two-stage detector
    may return, so that its mask head runs on these.
    """
    cfg = copy.deepcopy(cfg)
    if 'roi_head' in cfg.model:
        cfg.model.test_cfg.rcnn.score_thr = 0.0
    model = build_model(cfg).eval()
    data = model.data_preprocessor(example_batch(cfg, size, images=1), False)
    # Fused attentions of torch's would pass uncounted.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            model(**data, mode='predict')
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    counts = counter.get_flop_counts()
    return {
        name: Complexity(sum(p.numel() for p in part.parameters()), sum(counts[key].values()) // 2)
        for name, part, key in (
            ('backbone', model.backbone, f'{type(model).__name__}.backbone'),
            ('model', model, 'Global'),
        )
    }
