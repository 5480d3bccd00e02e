"""Drop path (stochastic depth): the module, its random draws, its rates.

B images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth: drop residual branches of whole samples, scale the kept by 1 / keep."""

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor, draws: Tensor | None = None) -> Tensor:
        """``(B, ...) -> (B, ...)``; the identity in eval mode.

        Args:
            draws: ``(B,)``, uniform in [0, 1): one per sample, dropped from `1 - drop_prob` on.
                None: drawn here.
        """
        if not self.active:
            return x
        keep = 1.0 - self.drop_prob
        if keep == 0.0:
            return x * 0  # Not zeros_like: distributed training requires gradients, even of 0.
        factor = (self.draws(x, draws) < keep).to(x.dtype).div_(keep)
        return x * factor.view(-1, *[1] * (x.ndim - 1))

    @property
    def active(self) -> bool:
        """Whether branches may be dropped."""
        return self.training and self.drop_prob > 0.0

    @staticmethod
    def draws(x: Tensor, draws: Tensor | None) -> Tensor:
        """Uniform ``(B,)``, unless there are draws already."""
        return torch.rand(len(x), device=x.device) if draws is None else draws

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3f}'


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Probabilities of dropping the branches of `depth` blocks, linear from 0 to that of the last.

    (Not a tensor: on the meta device it would have no values.)
    """
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def draw_paths(blocks: Sequence[nn.ModuleList], x: Tensor) -> Sequence[Tensor] | Sequence[None]:
    """The draws of all drop paths of a network in one call.

    (Each draw is a kernel of a GPU, and the maps of the last stage are small.)

    Args:
        blocks: The blocks of each stage.
        x: The maps of the first stage, ``(B, ...)``.

    Returns:
        For each stage ``(blocks, 2, B)``, the draws of :class:`DropPath` for the two branches of
        its blocks; None for all if no branch may be dropped.
    """
    modules = (module for stage in blocks for module in stage.modules())
    if not any(isinstance(module, DropPath) and module.active for module in modules):
        return [None] * len(blocks)
    depths = list(map(len, blocks))
    return torch.rand(sum(depths), 2, len(x), device=x.device).split(depths)
