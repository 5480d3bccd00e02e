"""The model of a config and a checkpoint, as the inference functions of its toolbox take it."""

import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import CheckpointLoader
from torch import nn

from swinv2_backbone.compat import allow_mmengine_checkpoints
from tools.engine.config_checks import plain_configs
from tools.engine.runner import check_checkpoint, use_checkpoint
from tools.utils.errors import UserError


def load_model(cfg: Config, checkpoint: str, device: torch.device) -> nn.Module:
    """Build and load a model, strictly, with torch's safe loader.

    Stands for mmdet's `init_detector` and mmseg's `init_model`, which go on with random weights if
    a checkpoint does not fit.

    Args:
        checkpoint: As in :func:`use_checkpoint`.

    Returns:
        The model with what `inference_detector` and `inference_model` read from it (`cfg`,
        `dataset_meta`), and `test_pipeline`: that of the config's test data, for arrays.

    Raises:
        UserError: If the config is of another toolbox, or the checkpoint is missing or does not
            fit.
    """
    if cfg.default_scope not in ('mmdet', 'mmseg'):
        raise UserError(f'config: got one of {cfg.default_scope}, allowed: of mmdet or mmseg')
    checkpoint = use_checkpoint(cfg, checkpoint)
    allow_mmengine_checkpoints()
    init_default_scope(cfg.default_scope)
    if 'init_cfg' in cfg.model.backbone:
        cfg.model.backbone.init_cfg = None  # These weights would be overwritten.
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    check_checkpoint(loaded, model, strict=True)
    state = loaded.get('state_dict', loaded)
    model.load_state_dict({key.removeprefix('module.'): value for key, value in state.items()})
    dataset = next(iter(plain_configs(cfg.test_dataloader.dataset)))
    recorded = loaded.get('meta', {}).get('dataset_meta') or {}
    model.dataset_meta = {**DATASETS.build(dict(dataset, lazy_init=True)).metainfo, **recorded}
    cfg.test_pipeline = _pipeline_for_arrays(dataset['pipeline'])
    model.cfg, model.test_pipeline = cfg, Compose(cfg.test_pipeline)
    return model.to(device).eval()


def _pipeline_for_arrays(pipeline: list) -> list:
    first, *others = pipeline
    kept = [step for step in others if step['type'].rpartition('.')[2] != 'LoadAnnotations']
    return [dict(first, type='LoadImageFromNDArray'), *kept]
