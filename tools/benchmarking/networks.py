"""The implementations of the benchmark, each under one interface: an image to four maps.

Ours and mmpretrain's normalize each map, as a backbone for dense prediction does; timm's,
transformers' and torchvision's return what leaves the blocks, which is a little less work.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tools.benchmarking.cases import ARCHITECTURES, IMPLEMENTATIONS, Case

PRETRAINED_WINDOW = 8


class Maps(nn.Module):
    """A network whose forward is ``(B, 3, H, W)`` to a list of four ``(B, C, H, W)``.

    Args:
        network: The network of some library.
        maps: Takes the network and an image, returns the maps.
    """

    def __init__(self, network: nn.Module, maps: Callable[[nn.Module, Tensor], list[Tensor]]):
        super().__init__()
        self.network = network
        self.maps = maps

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.maps(self.network, x))


def _ours(arch: dict, case: Case, drop_path: float, **more: object) -> Maps:
    from swinv2_backbone import SwinTransformerV2

    return Maps(
        SwinTransformerV2(
            arch=arch,
            window_size=case.window,
            pretrained_window_sizes=PRETRAINED_WINDOW,
            drop_path_rate=drop_path,
            **more,
        ),
        lambda network, x: network(x),
    )


def _intermediates(network: nn.Module, x: Tensor) -> list[Tensor]:
    return network.forward_intermediates(x, intermediates_only=True, norm=False, output_fmt='NCHW')


def _timm_arguments(arch: dict, case: Case, drop_path: float) -> dict:
    return dict(
        img_size=(case.height, case.width),
        embed_dim=arch['embed_dims'],
        depths=arch['depths'],
        num_heads=arch['num_heads'],
        num_classes=0,
        drop_path_rate=drop_path,
    )


def _timm(arch: dict, case: Case, drop_path: float) -> Maps:
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    return Maps(
        SwinTransformerV2(
            window_size=case.window,
            pretrained_window_sizes=(PRETRAINED_WINDOW,) * 4,
            **_timm_arguments(arch, case, drop_path),
        ),
        _intermediates,
    )


def _swin_v1(arch: dict, case: Case, drop_path: float) -> Maps:
    from timm.models.swin_transformer import SwinTransformer

    return Maps(
        SwinTransformer(window_size=7, **_timm_arguments(arch, case, drop_path)), _intermediates
    )


def _transformers(arch: dict, case: Case, drop_path: float) -> Maps:
    import transformers

    config = transformers.Swinv2Config(
        image_size=(case.height, case.width),
        window_size=case.window,
        embed_dim=arch['embed_dims'],
        depths=list(arch['depths']),
        num_heads=list(arch['num_heads']),
        drop_path_rate=drop_path,
        pretrained_window_sizes=[PRETRAINED_WINDOW] * 4,
        out_indices=[1, 2, 3, 4],
    )
    return Maps(transformers.Swinv2Backbone(config), lambda network, x: network(x).feature_maps)


def _torchvision(arch: dict, case: Case, drop_path: float) -> Maps:
    from torchvision.models import swin_transformer as swin

    def maps(network: nn.Module, x: Tensor) -> list[Tensor]:
        found = []
        for index, module in enumerate(network.features):
            x = module(x)
            if index % 2:  # The others are the patch embed and the patch mergings.
                found.append(x.permute(0, 3, 1, 2).contiguous())
        return found

    return Maps(
        swin.SwinTransformer(
            patch_size=[4, 4],
            embed_dim=arch['embed_dims'],
            depths=list(arch['depths']),
            num_heads=list(arch['num_heads']),
            window_size=[case.window] * 2,
            num_classes=1,
            stochastic_depth_prob=drop_path,
            block=swin.SwinTransformerBlockV2,
            downsample_layer=swin.PatchMergingV2,
        ),
        maps,
    )


def _mmpretrain(arch: dict, case: Case, drop_path: float) -> Maps:
    from mmpretrain.models.backbones import SwinTransformerV2

    # It does not shrink windows to small maps by itself: its configs say 16 16 16 8.
    windows = [min(case.window, *shape[2:]) for shape in case.map_shapes(arch['embed_dims'])]
    return Maps(
        SwinTransformerV2(
            arch={**arch, 'extra_norm_every_n_blocks': 0},
            img_size=(case.height, case.width),
            window_size=windows,
            drop_path_rate=drop_path,
            out_indices=(0, 1, 2, 3),
            pretrained_window_sizes=[PRETRAINED_WINDOW] * 4,
        ),
        lambda network, x: network(x),
    )


_BUILDERS = {
    'ours': _ours,
    'ours_plain': _ours,
    'ours_sequential': _ours,
    'timm': _timm,
    'transformers': _transformers,
    'torchvision': _torchvision,
    'mmpretrain': _mmpretrain,
    'swin_v1': _swin_v1,
}


_kept: list[torch.library.Library] = []  # A library undoes its definitions when collected.


def declare_torchvision_operators() -> None:
    """PyPI's torchvision is built for CUDA: beside a CPU torch, importing it wants two schemas."""
    try:
        importlib.import_module('torchvision')
    except ImportError:
        pass  # Who needs it will say so.
    except RuntimeError:
        library = torch.library.Library('torchvision', 'DEF')
        library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        _kept.append(library)


def build_network(
    implementation: str, case: Case, arch: str, drop_path: float, **more: object
) -> Maps:
    """An implementation's network with random weights, in train or eval mode as the case says.

    Norm weights are near 1, so that no residual branch is blank, and biases are near 0. What
    `more` there is goes to the constructor, which must be ours.

    Raises:
        ImportError: If its library is not installed.
    """
    if implementation in IMPLEMENTATIONS:
        declare_torchvision_operators()
    torch.manual_seed(0)
    network = _BUILDERS[implementation](ARCHITECTURES[arch], case, drop_path, **more)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(float(name.endswith('weight')), 0.1)
    return network.train(case.mode == 'train')
