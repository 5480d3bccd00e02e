"""The block of SwinV2: attention and MLP, each in a residual branch.

B images, H W map size in tokens, C channels. Maps are channels-last: ``(B, H, W, C)``.
Parameters are named as in the official repository.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from .attention import AttentionConstants, WindowAttention
from .drop_path import DropPath
from .fused_attention import use_fused_attention
from .fused_norm import add_normed, norm_map, use_fused_norm
from .linear import ROWS, linear
from .sdpa_attention import TOKENS_IN_CACHE
from .windows import WindowGrid


class Mlp(nn.Module):
    """Linear, GELU, Linear, each followed by dropout; ``(..., dim) -> (..., dim)``."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(linear(self.fc1, x, act=self.act))
        return self.drop(linear(self.fc2, hidden))


def _chunk_sizes(tokens: int) -> list[int]:
    """Of as many tokens as stay in the cache of a CPU, and as oneDNN takes, but for the last."""
    whole, left = divmod(tokens, TOKENS_IN_CACHE)
    sizes = [TOKENS_IN_CACHE] * whole + [left - left % ROWS, left % ROWS]
    return [size for size in sizes if size]


class SwinTransformerBlock(nn.Module):
    """Window attention and MLP, each in a residual branch that ends with a LayerNorm.

    Args:
        dim: Channels C.
        mlp_ratio: Hidden channels of the MLP over C.
        drop: Dropout probability of projections and MLP.
        attn_drop: Dropout probability of attention weights.
        drop_path: Probability of dropping a branch.
        windows_at_once: Windows computed at a time; see :func:`~.fused_attention.attend`.
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

    def forward(
        self,
        x: Tensor,
        grid: WindowGrid,
        constants: AttentionConstants,
        draws: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``.

        Args:
            x: The maps.
            grid: Their partition into windows.
            constants: Of the attention and the grid's window.
            draws: For each of the two branches, the draws of :class:`DropPath`.
        """
        attended = self.attn(x, grid, constants)
        if not self._use_chunks(x):
            return self._add_branches(x, attended, *(draws or (None, None)))
        sizes = _chunk_sizes(x.shape[:3].numel())
        chunks = zip(*(y.flatten(0, 2).split(sizes) for y in (x, attended)), strict=True)
        return torch.cat([self._add_branches(*chunk) for chunk in chunks]).view_as(x)

    def _add_branches(
        self, x: Tensor, attended: Tensor, first: Tensor | None = None, second: Tensor | None = None
    ) -> Tensor:
        # Drop path comes after the norm. Before it, a dropped branch would still add the norm's
        # bias, and the norm would undo the factor 1 / keep of a kept one.
        x = self._add(x, attended, self.norm1, first)
        return self._add(x, self.mlp(x), self.norm2, second)

    def _add(self, x: Tensor, branch: Tensor, norm: nn.Module, draws: Tensor | None) -> Tensor:
        if not self._use_fused_norm(x, branch, norm):
            return x + self.drop_path(norm_map(norm, branch), draws)
        drop = self.drop_path
        draws = drop.draws(x, draws) if drop.active else None
        args = norm.weight, norm.bias, draws, 1.0 - drop.drop_prob, norm.eps
        return add_normed(x, branch, *cast(Any, args))

    def _use_fused_norm(self, x: Tensor, branch: Tensor, norm: nn.Module) -> bool:
        """Whether one kernel may do what both modules do, which they then do not notice."""
        modules = norm, self.drop_path
        return (
            use_fused_norm(x, branch)
            and (type(norm), type(self.drop_path)) == (nn.LayerNorm, DropPath)
            and norm.bias is not None
            and not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
        )

    def _use_chunks(self, x: Tensor) -> bool:
        """Whether to compute the tokens in chunks after the attention, where each is independent.

        That keeps the MLP's hidden channels in the cache of a CPU, and the memory small. It is of
        no use where autograd keeps them, and forward hooks on the modules would notice it.
        """
        recorded = torch.is_grad_enabled() and any(p.requires_grad for p in (x, *self.parameters()))
        return (
            x.device.type == 'cpu'
            and not self.training
            and not recorded
            and not torch.compiler.is_compiling()
            and use_fused_attention()
            and not any(m._forward_hooks or m._forward_pre_hooks for m in self.modules())
        )
