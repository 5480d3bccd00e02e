"""The modules that change the resolution: patch embed and patch merging.

B images, H W map size in tokens, C channels. Maps are channels-last: ``(B, H, W, C)``.
Parameters are named as in the official repository.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .caches import exporting
from .fused_norm import norm_map
from .linear import linear
from .windows import size_is_unknown


class PatchEmbed(nn.Module):
    """Patches to tokens: a convolution with stride `patch_size` (in pixels), then LayerNorm."""

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dims, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W) -> (B, ceil(H / patch), ceil(W / patch), C)``.

        The last patches are padded, below and right, with zeros.
        """
        if torch.compiler.is_compiling() or exporting():
            # The convolution drops what is too much, so that one graph is valid for all sizes.
            below = right = self.patch_size - 1
        else:
            below, right = -x.shape[2] % self.patch_size, -x.shape[3] % self.patch_size
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        return norm_map(self.norm, self.proj(x).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Halve a map: 2 x 2 neighbors are concatenated, projected to 2C, then normalized."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2C)``, odd sides zero-padded."""
        height, width = x.shape[1:3]
        # (row, column) offsets (0,0) (1,0) (0,1) (1,1): the order in all checkpoints.
        if torch.compiler.is_compiling() and not exporting():
            # Padded in any case and cut in steps, so that one graph is valid for all sizes.
            x = F.pad(x, (0, 0, 0, 1, 0, 1))
            offsets = (0, 0), (1, 0), (0, 1), (1, 1)
            x = torch.cat([x[:, i : height + i : 2, j : width + j : 2] for i, j in offsets], dim=-1)
        else:
            # (Not `% 2`: ONNX's exporter has no remainder of a size that it does not know.)
            rows, cols = (height + 1) // 2, (width + 1) // 2
            below, right = 2 * rows - height, 2 * cols - width
            if size_is_unknown(height) or size_is_unknown(width) or below or right:
                x = F.pad(x, (0, 0, 0, right, 0, below))
            x = x.reshape(x.shape[0], rows, 2, cols, 2, x.shape[3])
            # (B, H/2, W/2, column, row, C), of which the last three are joined.
            x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)
        return norm_map(self.norm, linear(self.reduction, x))
