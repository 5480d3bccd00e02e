"""What SwinV2 is built from: patch embed, block, patch merging, stage.

B images, H W map size in tokens, C channels. Maps are channels-last: ``(B, H, W, C)``.
Modules hold parameters under the official repository's names.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import WindowAttention
from .dispatch import (
    TOKENS_IN_CACHE,
    has_hooks,
    linear_gelu,
    records_gradient,
    use_fused_implementation,
)
from .windows import Pair, WindowGrid


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch for whole samples, scale what is kept by 1 / keep.

    Args:
        drop_prob: Probability of dropping, 0 to 1.
    """

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Any ``(B, ...)``; the identity in eval mode."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1.0 - self.drop_prob
        if keep == 0.0:
            return x * 0  # Not zeros_like: distributed training wants a gradient, if only 0.
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * (torch.rand(shape, device=x.device) < keep).to(x.dtype).div_(keep)

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3f}'


class PatchEmbed(nn.Module):
    """Patches to tokens: a convolution with stride patch_size, then LayerNorm.

    Args:
        in_channels: Channels of the image.
        embed_dims: Channels C of a token.
        patch_size: Side of a patch in pixels.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dims, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W) -> (B, ceil(H / patch), ceil(W / patch), C)``.

        What is missing from the last patches is padded, below and right, with zeros.
        """
        if torch.compiler.is_compiling():
            # What is too much the convolution drops: so a graph serves all sizes.
            below = right = self.patch_size - 1
        else:
            below, right = -x.shape[2] % self.patch_size, -x.shape[3] % self.patch_size
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Halve a map: 2 x 2 neighbors are concatenated, reduced to 2C, then normalized.

    Args:
        dim: Channels C that arrive.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2C)``, odd sides zero-padded."""
        height, width = x.shape[1:3]
        # (row, column) offsets (0,0) (1,0) (0,1) (1,1): the order that checkpoints are in.
        if torch.compiler.is_compiling():
            # Padded by one, needed or not, and cut in steps: so one graph serves all sizes.
            x = F.pad(x, (0, 0, 0, 1, 0, 1))
            x = torch.cat(
                [
                    x[:, row : height + row : 2, col : width + col : 2]
                    for col in (0, 1)
                    for row in (0, 1)
                ],
                dim=-1,
            )
        else:
            if height % 2 or width % 2:
                x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
            x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H/2, row, W/2, column, C)
            x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.norm(self.reduction(x))


class Mlp(nn.Module):
    """Linear, GELU, Linear, each followed by dropout; ``(..., dim) -> (..., dim)``."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        hidden = linear_gelu(x, self.fc1, self.act)
        return self.drop(self.fc2(self.drop(hidden)))


class SwinTransformerBlock(nn.Module):
    """Window attention and MLP, each a residual branch that ends in a LayerNorm.

    Args:
        dim: Channels C.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of the MLP over C.
        drop: Dropout probability of projections and MLP.
        attn_drop: Dropout probability of attention weights.
        drop_path: Probability of dropping a branch.
        windows_at_once: Windows of the attention in flight at a time, None: as many as run fastest.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        windows_at_once: int | None = None,
    ):
        super().__init__()
        self.attn = WindowAttention(
            dim, num_heads, attn_drop=attn_drop, proj_drop=drop, windows_at_once=windows_at_once
        )
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.norm2 = nn.LayerNorm(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: WindowGrid, pretrained_window: Pair) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``.

        Args:
            x: The map.
            grid: How it is cut into windows.
            pretrained_window: Window in tokens at which the CPB network was trained.
        """
        attended = self.attn(x, grid, pretrained_window)
        if not self._goes_in_pieces(x):
            return self._add_branches(x, attended)
        pieces = zip(*(y.flatten(0, 2).split(TOKENS_IN_CACHE) for y in (x, attended)), strict=True)
        return torch.cat([self._add_branches(*piece) for piece in pieces]).view_as(x)

    def _add_branches(self, x: Tensor, attended: Tensor) -> Tensor:
        # Drop path comes after the norm: before it, a dropped branch would still emit the
        # norm's bias, and a kept one would have its 1 / keep normalized away.
        x = x + self.drop_path(self.norm1(attended))
        return x + self.drop_path(self.norm2(self.mlp(x)))

    def _goes_in_pieces(self, x: Tensor) -> bool:
        """Whether what is left, which does each token by itself, is to go piece by piece.

        Then the MLP's hidden channels stay in a CPU's cache, and memory small. It is worth nothing
        where autograd keeps them, and would show to whoever has hooks on the modules.
        """
        return (
            x.device.type == 'cpu'
            and not self.training
            and not torch.compiler.is_compiling()
            and use_fused_implementation()
            and not records_gradient(x, *self.parameters())
            and not has_hooks(self)
        )


class SwinTransformerStage(nn.Module):
    """The blocks of one resolution, every other one shifted, then a patch merging.

    Args:
        dim: Channels C.
        depth: Number of blocks.
        num_heads: Attention heads.
        window: Window height and width in tokens.
        pretrained_window: Window in tokens at which the CPB networks were trained.
        drop_path: One probability a block.
        downsample: Whether a patch merging follows.
        with_cp: Whether to recompute each block in the backward instead of keeping its
            activations.
        block_args: Further arguments of :class:`SwinTransformerBlock`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        window: Pair,
        pretrained_window: Pair,
        drop_path: Sequence[float],
        downsample: bool,
        with_cp: bool = False,
        **block_args: float,
    ):
        super().__init__()
        self.window = window
        self.pretrained_window = pretrained_window
        self.with_cp = with_cp
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(dim, num_heads, drop_path=drop_path[i], **block_args)
            for i in range(depth)
        )
        self.downsample = PatchMerging(dim) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``: the blocks, without the patch merging."""
        size = (x.shape[1], x.shape[2])
        grids = [WindowGrid.for_map(size, self.window, shifted) for shifted in (False, True)]
        for i, block in enumerate(self.blocks):
            args = x, grids[i % 2], self.pretrained_window
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, *args, use_reentrant=False)
            else:
                x = block(*args)
        return x
