"""The implementations of SwinV2 that ours is compared with, one entry each.

The set-up script installs their packages, the benchmark builds their backbones, and the parity
tests compare with them. This module imports nothing but the standard library until something is
built, because the set-up script reads it before anything is installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Implementation:
    """One implementation.

    Attributes:
        folder: The folder of `.venv/implementations` that it is installed into. Each is put before
            `.venv` on the path, in processes of its own: torchvision would disturb mmengine, and
            mmpretrain cannot be imported beside transformers.
        packages: What pip installs there, at the versions of constraints.txt and without
            dependencies: what else they need is in `.venv`. The first is the library itself.
        build: Takes ``arch`` (embed_dims, depths and num_heads), the image ``size`` (a side or
            (height, width), in pixels), the ``window`` and the ``pretrained_window`` (sides in
            tokens; 0 if it is the window itself), the ``drop_path`` rate, the number of
            ``classes`` (0: a backbone) and arguments of its own. Returns the network.
        maps: Takes the network and images ``(B, 3, H, W)``; returns its four feature maps
            ``(B, C, H, W)``, of strides 4 to 32.
        label: Its name in tables, if not the one in `IMPLEMENTATIONS`.
        is_v2: Whether it is the same network, SwinV2.
    """

    folder: str
    packages: tuple[str, ...]
    build: Callable[..., nn.Module]
    maps: Callable[[nn.Module, Tensor], list[Tensor]]
    label: str = ''
    is_v2: bool = True


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _timm_arguments(arch: dict, drop_path: float) -> dict:
    return dict(
        embed_dim=arch['embed_dims'],
        depths=arch['depths'],
        num_heads=arch['num_heads'],
        drop_path_rate=drop_path,
    )


def _timm(arch, size, window, pretrained_window, drop_path=0.0, classes=0, **more):
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    return SwinTransformerV2(
        img_size=size,
        window_size=window,
        num_classes=classes,
        pretrained_window_sizes=(pretrained_window,) * 4,
        **_timm_arguments(arch, drop_path),
        **more,
    )


def timm_features(arch, size, window, pretrained_window, drop_path=0.0):
    """timm's ``features_only`` model: its parameters have other names."""
    import timm

    return timm.create_model(
        'swinv2_tiny_window8_256',
        features_only=True,
        img_size=size,
        window_size=window,
        pretrained_window_sizes=(pretrained_window,) * 4,
        **_timm_arguments(arch, drop_path),
    )


def _swin_v1(arch, size, window, pretrained_window, drop_path=0.0, classes=0):
    """Swin V1 with its own window of 7 tokens."""
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=size, window_size=7, num_classes=classes, **_timm_arguments(arch, drop_path)
    )


def _timm_maps(network, x):
    return network.forward_intermediates(x, intermediates_only=True, norm=False, output_fmt='NCHW')


def _transformers(
    arch, size, window, pretrained_window, drop_path=0.0, classes=0, class_name='Swinv2Backbone'
):
    import transformers

    config = transformers.Swinv2Config(
        image_size=size,
        window_size=window,
        embed_dim=arch['embed_dims'],
        depths=list(arch['depths']),
        num_heads=list(arch['num_heads']),
        drop_path_rate=drop_path,
        pretrained_window_sizes=[pretrained_window] * 4,
        num_labels=classes,
        out_indices=[1, 2, 3, 4],
    )
    return getattr(transformers, class_name)(config)


def _torchvision(arch, size, window, pretrained_window, drop_path=0.0, classes=0):
    """torchvision's classifier, which has no pretrained window."""
    from torchvision.models import swin_transformer as swin

    return swin.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=arch['embed_dims'],
        depths=list(arch['depths']),
        num_heads=list(arch['num_heads']),
        window_size=[window, window],
        num_classes=classes or 1,
        stochastic_depth_prob=drop_path,
        block=swin.SwinTransformerBlockV2,
        downsample_layer=swin.PatchMergingV2,
    )


def _torchvision_maps(network, x):
    maps = []
    for index, module in enumerate(network.features):
        x = module(x)
        if index % 2:  # The others are the patch embedding and the patch mergings.
            maps.append(x.permute(0, 3, 1, 2).contiguous())
    return maps


def _mmpretrain(arch, size, window, pretrained_window, drop_path=0.0, classes=0):
    from mmpretrain.models import ImageClassifier
    from mmpretrain.models.backbones import SwinTransformerV2

    # It does not shrink windows to small maps by itself: its configs say 16 16 16 8.
    windows = [min(window, *(-(-side // (4 * 2**i)) for side in _pair(size))) for i in range(4)]
    backbone = SwinTransformerV2(
        arch={**arch, 'extra_norm_every_n_blocks': 0},
        img_size=size,
        window_size=windows,
        drop_path_rate=drop_path,
        out_indices=(3,) if classes else (0, 1, 2, 3),
        pretrained_window_sizes=[pretrained_window] * 4,
    )
    if not classes:
        return backbone
    return ImageClassifier(
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=8 * arch['embed_dims']),
    )


# In the order in which the benchmark runs them.
IMPLEMENTATIONS = {
    'timm': Implementation('hf', ('timm', 'torchvision'), _timm, _timm_maps),
    'transformers': Implementation(
        'hf',
        ('transformers', 'tokenizers'),
        _transformers,
        lambda network, x: list(network(x).feature_maps),
    ),
    'torchvision': Implementation('hf', ('torchvision',), _torchvision, _torchvision_maps),
    'mmpretrain': Implementation(
        'mmpretrain',
        (
            'mmpretrain',
            'torchvision',
            'einops',
            'model-index',
            'ordered-set',
            'markdown',
            'mat4py',
            'importlib-metadata',
            'zipp',
        ),
        _mmpretrain,
        lambda network, x: list(network(x)),
    ),
    'swin_v1': Implementation(
        'hf', ('timm', 'torchvision'), _swin_v1, _timm_maps, 'V1 Swin-T (timm)', is_v2=False
    ),
}


def packages_by_folder() -> dict[str, list[str]]:
    """What is installed into each folder of `.venv/implementations`."""
    found: dict[str, dict[str, None]] = {}
    for each in IMPLEMENTATIONS.values():
        found.setdefault(each.folder, {}).update(dict.fromkeys(each.packages))
    return {folder: list(packages) for folder, packages in found.items()}


_kept: list = []  # A torch.library.Library undoes its definitions when it is collected.


def declare_torchvision_operators() -> None:
    """Make a torchvision that was built for CUDA importable beside a torch built for the CPU.

    PyPI's torchvision is such a build: its operators do not load there, and importing it fails
    because two schemas are missing. For tests and the benchmark alone.
    """
    try:
        importlib.import_module('torchvision')
    except ImportError:
        pass  # Whoever needs it will say so.
    except RuntimeError:
        import torch

        library = torch.library.Library('torchvision', 'DEF')
        library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        _kept.append(library)
