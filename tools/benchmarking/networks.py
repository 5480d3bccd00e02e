"""The networks of the benchmark, each with one interface: images to four feature maps.

Ours and mmpretrain's normalize each map, as a backbone for dense prediction does; timm's,
transformers' and torchvision's return what leaves the blocks, which is a little less work.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tools.benchmarking.cases import ARCHITECTURES, DTYPES, Case
from tools.benchmarking.implementations import IMPLEMENTATIONS, declare_torchvision_operators

PRETRAINED_WINDOW = 8


class Maps(nn.Module):
    """A network whose forward is ``(B, 3, H, W)`` to a list of four ``(B, C, H, W)``."""

    def __init__(self, network: nn.Module, maps: Callable[[nn.Module, Tensor], list[Tensor]]):
        super().__init__()
        self.network = network
        self.maps = maps

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.maps(self.network, x))


def multiply_in_half() -> None:
    """Make SDPA's backward multiply in half precision on a CPU, too, for timings alone.

    CPUs round products to half precision. That is too much for the logits; where it is no faster
    all the same, there is nothing to gain.
    """
    from swinv2_backbone.layers import sdpa_attention

    sdpa_attention._multiplies_in_half = lambda qkv: qkv.dtype == torch.bfloat16
    sdpa_attention._product = lambda a, b, out: out.copy_(torch.bmm(a, b))


def compute_linear_by_torch() -> None:
    """Have torch's own operators compute all linear layers, for timings beside oneDNN's."""
    from swinv2_backbone.layers import linear

    linear._HAS_ONEDNN = False


def _cast_linear(module: nn.Module, dtype: torch.dtype) -> None:
    if isinstance(module, nn.Linear):
        module.to(dtype)


def _quantize(network: nn.Module) -> None:
    """Have torchao's linear layers multiply int8, but those of the position bias."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    def chosen(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and 'cpb_mlp' not in name

    quantize_(network, Int8DynamicActivationInt8WeightConfig(), chosen)


def build_network(
    implementation: str, case: Case, arch: str, drop_path: float, **more: object
) -> Maps:
    """A network with random weights, in train or eval mode as the case says.

    Norm weights are near 1, so that no residual branch vanishes, and biases are near 0.

    Args:
        implementation: A name of IMPLEMENTATIONS; any other is ours. 'ours_without_norms' returns
            what leaves the blocks, as timm's and transformers' do.
        more: Further arguments of our constructor.

    Raises:
        ImportError: If its library is not installed.
    """
    torch.manual_seed(0)
    if implementation in IMPLEMENTATIONS:
        declare_torchvision_operators()
        theirs = IMPLEMENTATIONS[implementation]
        size = (case.height, case.width)
        built = theirs.build(ARCHITECTURES[arch], size, case.window, PRETRAINED_WINDOW, drop_path)
        network = Maps(built, theirs.maps)
    else:
        from swinv2_backbone import SwinTransformerV2

        if implementation == 'ours_half_backward':
            multiply_in_half()
        if implementation == 'ours_without_onednn':
            compute_linear_by_torch()
        built = SwinTransformerV2(
            arch=ARCHITECTURES[arch],
            window_size=case.window,
            pretrained_window_sizes=PRETRAINED_WINDOW,
            drop_path_rate=drop_path,
            **more,
        )
        if implementation == 'ours_without_norms':
            for index in range(len(built.layers)):
                built.add_module(f'norm{index}', nn.Identity())
        network = Maps(built, lambda network, x: network(x))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(float(name.endswith('weight')), 0.1)
    if case.dtype == 'int8':
        _quantize(network)
    if case.dtype.endswith('_weights'):
        network.apply(lambda module: _cast_linear(module, DTYPES[case.dtype]))
    return network.train(case.mode == 'train')
