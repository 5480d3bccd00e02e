"""The stages of SwinV2: blocks of one resolution, which share what belongs to their window.

B images, H W map size in tokens, C channels. Maps are channels-last: ``(B, H, W, C)``.
Parameters are named as in the official repository.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import AttentionConstants, ConstantsCache, WindowAttention
from .blocks import SwinTransformerBlock
from .caches import transforms_active
from .fused_attention import Choice, choose_attention
from .patches import PatchMerging
from .weight_casts import WeightCasts, cast_weights, use_casts
from .windows import Pair, WindowGrid


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
        casts = self._cast_weights(constants, x.device)
        for i, block in enumerate(self.blocks):
            by_branch = None if draws is None else (draws[i, 0], draws[i, 1])
            inputs = x, grids[i % 2], constants[i], by_branch
            run = partial(_run_with_casts, block, casts) if casts else block
            x = checkpoint(run, *inputs, use_reentrant=False) if use_checkpoint else run(*inputs)
        return x

    def _cast_weights(
        self, constants: Sequence[AttentionConstants], device: torch.device
    ) -> WeightCasts:
        layers = []
        for block, (qkv_bias, *_) in zip(self.blocks, constants, strict=True):
            attn, mlp = (cast(nn.Module, each) for each in (block.attn, block.mlp))
            layers.append((cast(nn.Linear, attn.qkv), qkv_bias))
            others = attn.proj, *mlp.children()
            layers += [(each, each.bias) for each in others if isinstance(each, nn.Linear)]
        return cast_weights(layers, device)

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


def _run_with_casts(block: nn.Module, casts: WeightCasts, *inputs: Any) -> Tensor:
    with use_casts(casts):
        return block(*inputs)


def build_stages(
    embed_dims: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    windows: Sequence[Pair],
    pretrained_windows: Sequence[Pair | None],
    drop_paths: Sequence[float],
    with_cp: Sequence[bool],
    **stage_args: Any,
) -> Sequence[SwinTransformerStage]:
    """The stages of a network; the channels double, and the last one has no patch merging.

    Args:
        embed_dims: Channels C of the first stage.
        depths: Number of blocks, one per stage to build; heads, windows (height and width in
            tokens) and `with_cp` may have more entries.
        drop_paths: Probability of dropping a branch, one per block of the network.
        stage_args: Further arguments of :class:`SwinTransformerStage`.

    Returns:
        A ModuleList.
    """
    stages = nn.ModuleList(
        SwinTransformerStage(
            embed_dims * 2**i,
            depth,
            num_heads[i],
            windows[i],
            pretrained_windows[i],
            drop_paths[sum(depths[:i]) : sum(depths[: i + 1])],
            downsample=i < len(depths) - 1,
            with_cp=with_cp[i],
            **stage_args,
        )
        for i, depth in enumerate(depths)
    )
    return cast(Sequence[SwinTransformerStage], stages)
