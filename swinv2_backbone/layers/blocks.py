"""The blocks of SwinV2, and the stages that they make up.

B images, H W map size in tokens, C channels. Maps are channels-last: ``(B, H, W, C)``.
Parameters are named as in the official repository.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import AttentionConstants, ConstantsCache, WindowAttention
from .caches import transforms_active
from .fused_attention import Choice, choose_attention, use_fused_attention
from .fused_norm import add_normed, use_fused_norm
from .patches import PatchMerging
from .sdpa_attention import TOKENS_IN_CACHE
from .windows import Pair, WindowGrid


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


class Mlp(nn.Module):
    """Linear, GELU, Linear, each followed by dropout; ``(..., dim) -> (..., dim)``."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


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
        chunks = zip(*(y.flatten(0, 2).split(TOKENS_IN_CACHE) for y in (x, attended)), strict=True)
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
            return x + self.drop_path(norm(branch), draws)
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


class SwinTransformerStage(nn.Module):
    """The blocks of one resolution, every second one shifted, then a patch merging.

    Args:
        dim: Channels C.
        window: Window height and width in tokens.
        pretrained_window: Window in tokens at which the CPB networks were trained. None: unknown
            until it is set; it must be when the stage is called.
        drop_path: Probability of dropping a branch, one per block.
        with_cp: Whether to recompute each block in the backward instead of keeping its
            activations. The transforms of torch.func keep them in any case.
        block_args: Further arguments of :class:`SwinTransformerBlock`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        window: Pair,
        pretrained_window: Pair | None,
        drop_path: Sequence[float],
        downsample: bool,
        with_cp: bool = False,
        **block_args: Any,
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
        self._constants = ConstantsCache()

    def forward(self, x: Tensor, draws: Tensor | None = None) -> Tensor:
        """The blocks, without the patch merging: ``(B, H, W, C) -> (B, H, W, C)``.

        Args:
            x: The maps.
            draws: ``(blocks, 2, B)``, for each block and branch the draws of :class:`DropPath`.
                None: drawn there.

        Raises:
            RuntimeError: If `pretrained_window` was never set.
        """
        size = (x.shape[1], x.shape[2])
        grids = [WindowGrid.for_map(size, self.window, shifted) for shifted in (False, True)]
        as_table = self.choose_attention(x).name == 'triton'
        constants = self.attention_constants(grids[0].window, as_table)
        use_checkpoint = self.with_cp and torch.is_grad_enabled() and not transforms_active()
        for i, block in enumerate(self.blocks):
            by_branch = None if draws is None else (draws[i, 0], draws[i, 1])
            inputs = x, grids[i % 2], constants[i], by_branch
            if use_checkpoint:
                x = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x = block(*inputs)
        return x

    def choose_attention(self, x: Tensor) -> Choice:
        """The implementation of the attention of all blocks for a map ``(B, H, W, C)``."""
        attentions = self._attentions()
        dropout = any(attention.dropout > 0 for attention in attentions)
        return choose_attention(x, x.shape[-1] // attentions[0].num_heads, dropout)

    def _attentions(self) -> list[WindowAttention]:
        return [cast(SwinTransformerBlock, block).attn for block in self.blocks]

    def attention_constants(self, window: Pair, as_table: bool = False) -> list[AttentionConstants]:
        """The constants of each block's attention at a window in tokens; see ConstantsCache.

        Args:
            as_table: Whether the bias is a table, as the Triton kernels take it.

        Raises:
            RuntimeError: If `pretrained_window` was never set.
        """
        if self.pretrained_window is None:
            raise RuntimeError(
                "pretrained_window_sizes='auto': no checkpoint was loaded to read it from; call "
                'init_weights(), load a state dict of this backbone, or set it'
            )
        window_args = window, self.pretrained_window, as_table
        return self._constants.get(self._attentions(), *window_args)

    def clear_caches(self) -> None:
        """Forget what was computed from the weights; see :class:`ConstantsCache`."""
        self._constants.clear()

    def train(self, mode: bool = True) -> 'SwinTransformerStage':
        self.clear_caches()
        return super().train(mode)


def build_stages(
    embed_dims: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    windows: Sequence[Pair],
    pretrained_windows: Sequence[Pair | None],
    drop_paths: Sequence[float],
    **stage_args: Any,
) -> nn.ModuleList:
    """The stages of a network; the channels double, and the last one has no patch merging.

    Args:
        embed_dims: Channels C of the first stage.
        depths: Number of blocks, one per stage to build; heads and windows (height and width in
            tokens) may have more entries.
        drop_paths: Probability of dropping a branch, one per block of the network.
        stage_args: Further arguments of :class:`SwinTransformerStage`.
    """
    return nn.ModuleList(
        SwinTransformerStage(
            embed_dims * 2**i,
            depth,
            num_heads[i],
            windows[i],
            pretrained_windows[i],
            drop_paths[sum(depths[:i]) : sum(depths[: i + 1])],
            downsample=i < len(depths) - 1,
            **stage_args,
        )
        for i, depth in enumerate(depths)
    )


def init_from_scratch(model: nn.Module) -> None:
    """Initialize linear layers and post-norms for training from scratch, as the official code."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            # Bounds of 5 standard deviations. With the customary -2 and 2, which are 100, torch
            # before 2.13 and mmengine return -2 itself for one weight in 2**24.
            nn.init.trunc_normal_(module.weight, std=0.02, a=-0.1, b=0.1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        # Residual branches end with a norm. With weight and bias 0, each block starts as the
        # identity; otherwise large models diverge.
        if isinstance(module, SwinTransformerBlock):
            for parameter in (*module.norm1.parameters(), *module.norm2.parameters()):
                nn.init.zeros_(parameter)
