"""The other implementations of SwinV2: built, filled with random_parameter weights, saved as they save.

Each implementation has ``build(arch, window, size, pretrained)``, ``stages(model, x)`` (what leaves the
blocks of each stage, (B, C, H, W)), ``save(model, folder)`` (the checkpoint to load) and
``format`` (its key map's name).
"""

import importlib
import math
import os
import re
import zlib

import pytest
import torch

CLASSES = 10
# Implementations that must be there; the others are left out where they are not installed.
WANTED = os.environ.get('SWINV2_IMPLEMENTATIONS', '').split()


def declare_torchvision_operators():
    """PyPI's torchvision is built for CUDA: beside a CPU torch, importing it wants two schemas."""
    if not hasattr(torch.ops.torchvision, 'nms'):
        library = torch.library.Library('torchvision', 'DEF')
        library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        globals()['_library'] = library  # It undoes its definitions when it is collected.


def need(module):
    """Import an implementation's module; skip the test where it is not asked for, or by chance not there."""
    try:
        importlib.import_module('torchvision')
    except (ImportError, RuntimeError):
        declare_torchvision_operators()
    if not WANTED:
        return pytest.importorskip(module)
    if module not in WANTED:
        pytest.skip(f'{module} is compared with in another run')
    return importlib.import_module(module)


# What a stage's last one is called.
_LAST_STAGE = re.compile(r'\b((layers|stages)[._]3|features\.7)\.')


def random_parameter(key, shape, sharp=False):
    """A value for a parameter of any library that makes it matter: the same for the same key.

    Post-norms are away from 0 and 1, logit scales away from ln 10, the position bias varies by
    several units, biases are not zero. In the last stage every third head's scale is above the
    clamp ln 100; if `sharp`, in all stages. So sharp a softmax multiplies float32's rounding: then
    each implementation, ours too, is some 2e-4 off from itself in float64.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    noise = torch.randn(shape, generator=generator)
    if key.endswith('logit_scale'):
        scales = math.log(10) + 0.4 * noise
        scales[::3] += 2.5 * (sharp or _LAST_STAGE.search(key) is not None)
        return scales
    if 'cpb_mlp' in key or 'position_bias_mlp' in key:
        return noise * (1.0 if '.0.' in key[-10:] else 0.1)
    if len(shape) == 1:
        return (0.6 if key.endswith('.weight') else 0.0) + 0.2 * noise
    return noise * noise[0].numel() ** -0.5


def fill(model, sharp=False):
    """Give every parameter of a model its random_parameter value."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(random_parameter(key, parameter.shape, sharp))
    return model.eval()


class Timm:
    module, format = 'timm', 'timm'

    def build(self, arch, window, size, pretrained=None, **kwargs):
        from timm.models.swin_transformer_v2 import SwinTransformerV2

        return SwinTransformerV2(
            img_size=size,
            window_size=window,
            embed_dim=arch['embed_dims'],
            depths=arch['depths'],
            num_heads=arch['num_heads'],
            num_classes=CLASSES,
            drop_path_rate=0.0,
            pretrained_window_sizes=(pretrained or 0,) * 4,
            **kwargs,
        )

    def stages(self, model, x):
        return model.forward_intermediates(
            x, intermediates_only=True, norm=False, output_fmt='NCHW'
        )

    def final_norm(self, model):
        return model.norm

    def save(self, model, folder):
        torch.save(model.state_dict(), folder / 'timm.pth')
        return folder / 'timm.pth'


class TimmFeatures(Timm):
    format = 'timm_features'

    def build(self, arch, window, size, pretrained=None):
        import timm

        return timm.create_model(
            'swinv2_tiny_window8_256',
            features_only=True,
            img_size=size,
            window_size=window,
            embed_dim=arch['embed_dims'],
            depths=arch['depths'],
            num_heads=arch['num_heads'],
            drop_path_rate=0.0,
            pretrained_window_sizes=(pretrained or 0,) * 4,
        )

    def stages(self, model, x):
        return [feature.permute(0, 3, 1, 2) for feature in model(x)]

    def final_norm(self, model):
        return None


class Hf:
    module, format = 'transformers', 'hf'

    def build(self, arch, window, size, pretrained=None):
        import transformers

        config = transformers.Swinv2Config(
            image_size=size,
            window_size=window,
            embed_dim=arch['embed_dims'],
            depths=list(arch['depths']),
            num_heads=list(arch['num_heads']),
            drop_path_rate=0.0,
            pretrained_window_sizes=[pretrained or 0] * 4,
            num_labels=CLASSES,
            out_indices=[1, 2, 3, 4],
        )
        return getattr(transformers, self.class_name)(config)

    class_name = 'Swinv2ForImageClassification'

    def stages(self, model, x):
        inner = getattr(model, 'swinv2', model)
        embedded, size = inner.embeddings(x)
        maps = inner.encoder(
            embedded,
            size,
            output_hidden_states=True,
            output_hidden_states_before_downsampling=True,
            return_dict=True,
        ).reshaped_hidden_states
        return maps[1:]

    def final_norm(self, model):
        return getattr(getattr(model, 'swinv2', model), 'layernorm', None)

    def save(self, model, folder):
        model.save_pretrained(folder)
        return folder / 'model.safetensors'


class HfModel(Hf):
    class_name = 'Swinv2Model'


class HfBackbone(Hf):
    class_name = 'Swinv2Backbone'


class Torchvision:
    module, format = 'torchvision', 'torchvision'

    def build(self, arch, window, size, pretrained=None):
        from torchvision.models import swin_transformer as swin

        return swin.SwinTransformer(
            patch_size=[4, 4],
            embed_dim=arch['embed_dims'],
            depths=list(arch['depths']),
            num_heads=list(arch['num_heads']),
            window_size=[window, window],
            num_classes=CLASSES,
            stochastic_depth_prob=0.0,
            block=swin.SwinTransformerBlockV2,
            downsample_layer=swin.PatchMergingV2,
        )

    def stages(self, model, x):
        maps = []
        for i, module in enumerate(model.features):
            x = module(x)
            if i % 2:
                maps.append(x.permute(0, 3, 1, 2))
        return maps

    def final_norm(self, model):
        return model.norm

    def save(self, model, folder):
        torch.save(model.state_dict(), folder / 'torchvision.pth')
        return folder / 'torchvision.pth'


class Mmpretrain:
    module, format = 'mmpretrain', 'mmpretrain'

    def build(self, arch, window, size, pretrained=None):
        from mmpretrain.models import ImageClassifier

        # It does not shrink windows to small maps by itself: its configs say 16 16 16 8.
        windows = [min(window, size // (4 * 2**i)) for i in range(4)]
        return ImageClassifier(
            backbone=dict(
                type='SwinTransformerV2',
                arch={**arch, 'extra_norm_every_n_blocks': 0},
                img_size=size,
                window_size=windows,
                drop_path_rate=0.0,
                pretrained_window_sizes=[pretrained or 0] * 4,
            ),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead', num_classes=CLASSES, in_channels=arch['embed_dims'] * 8
            ),
        )

    def stages(self, model, x):
        maps = []
        x, shape = model.backbone.patch_embed(x)
        for stage in model.backbone.stages:
            x, shape = stage(x, shape)
            maps.append(x.unflatten(1, shape).permute(0, 3, 1, 2))
        return maps

    def final_norm(self, model):
        return model.backbone.norm3

    def save(self, model, folder):
        from mmengine.runner import save_checkpoint, weights_to_cpu

        checkpoint = {
            'meta': {'mmpretrain_version': '1.2.0'},
            'state_dict': weights_to_cpu(model.state_dict()),
        }
        save_checkpoint(checkpoint, str(folder / 'mmpretrain.pth'))
        return folder / 'mmpretrain.pth'


IMPLEMENTATIONS = [
    Timm(),
    TimmFeatures(),
    Hf(),
    HfModel(),
    HfBackbone(),
    Torchvision(),
    Mmpretrain(),
]
NAMES = [type(implementation).__name__ for implementation in IMPLEMENTATIONS]
