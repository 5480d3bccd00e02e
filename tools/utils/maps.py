"""Maps of what is inside of a model: features as colors, and the position bias."""

from collections.abc import Sequence

import torch
from torch import Tensor

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers.position_bias import position_bias
from swinv2_backbone.layers.windows import Pair
from tools.utils.errors import UserError


def colors(maps: list[Tensor]) -> list[Tensor]:
    """Feature maps ``(C, H, W)`` as images ``(H, W, 3)`` with values from 0 to 1.

    Red, green and blue are the first three principal components of all maps together, so that
    a color means the same in each; the lowest and the highest percent are clipped.
    """
    tokens = torch.cat([each.flatten(1).t() for each in maps]).double()
    tokens -= tokens.mean(0)
    # From the covariance, because there are many tokens and few channels. The sign of a component
    # is arbitrary and depends on the machine, so the largest entry is made positive.
    basis = torch.linalg.eigh(tokens.t() @ tokens).eigenvectors.flip(1)[:, :3]
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    parts = tokens @ basis
    low, high = torch.quantile(
        parts[:: max(1, len(parts) // 100_000)],
        torch.tensor([0.01, 0.99], dtype=parts.dtype),
        dim=0,
    )
    parts = ((parts - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    sizes = [each.shape[1:] for each in maps]
    return [
        part.unflatten(0, size)
        for part, size in zip(parts.split([size.numel() for size in sizes]), sizes, strict=True)
    ]


@torch.no_grad()
def feature_maps(model: SwinTransformerV2, image: Tensor, windows: Sequence) -> list[list[Tensor]]:
    """For each window, the map ``(C, H, W)`` of each stage.

    Args:
        windows: Each as `SwinTransformerV2.set_window_size` takes it.
    """
    found = []
    for window in windows:
        with model.window_size_as(window):
            found.append([each[0] for each in model(image[None])])
    return found


@torch.no_grad()
def center_bias(model: SwinTransformerV2, stage: int, block: int, window: Pair) -> Tensor:
    """The bias from the center token to each token of a window: ``(nH, Wh, Ww)``.

    Raises:
        UserError: If there is no such layer.
    """
    depths = [len(each.blocks) for each in model.layers]
    if stage >= len(depths) or block >= depths[stage]:
        raise UserError(
            f'--layers: got {stage}.{block}; the checkpoint has blocks from 0 to '
            + ', '.join(f'{i}.{depth - 1}' for i, depth in enumerate(depths))
        )
    layers = model.layers[stage]
    bias = position_bias(layers.blocks[block].attn.cpb_mlp, window, layers.pretrained_window)
    center = window[0] // 2 * window[1] + window[1] // 2
    return bias[:, center].unflatten(1, window)
