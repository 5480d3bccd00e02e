"""Log-spaced continuous position bias (CPB).

Wh Ww window size in tokens, N = Wh * Ww, nH heads.

The bias is a function of the offset between query and key, in units of the pretrained window (the
one that the bias was trained with). With that unit, the same weights are valid at every window.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .caches import cache_tensors
from .precision import at_least_float32, without_autocast
from .windows import Pair

CPB_HIDDEN = 512
LARGEST_BIAS = 16.0
# Windows shrink to small maps, so that a network meets several.
_CACHED_WINDOWS = 32


def relative_coords(
    window: Pair,
    pretrained_window: Pair,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Log-spaced relative coordinates, the input of the CPB network.

    Args:
        window: Current window in tokens.
        pretrained_window: Window in tokens at which the network was trained; sets the unit.
        device: Device of the result.
        dtype: Floating-point type of the computation and the result.

    Returns:
        ``(2 Wh - 1, 2 Ww - 1, 2)``, (row, column), dimensionless, 0 at the center and
        1 in magnitude at the largest offset of the pretrained window.

    Raises:
        ValueError: If a side is smaller than 1.

    Source:
        SwinV2 paper (arXiv 2111.09883), section 3.3; scale 8 as in the official repository.
    """
    if min(*window, *pretrained_window) < 1:
        raise ValueError(
            f'window sides must be at least 1 token, got window={window} and '
            f'pretrained_window={pretrained_window}'
        )
    # A network trained at window 1 has seen no offset but 0, which is 0 in any unit above 0.
    rows, cols = (
        torch.arange(1 - w, w, device=device, dtype=dtype) / max(p - 1, 1)
        for w, p in zip(window, pretrained_window, strict=True)
    )
    scaled = 8 * torch.stack(torch.meshgrid(rows, cols, indexing='ij'), dim=-1)
    return scaled.sign() * torch.log2(1 + scaled.abs()) / 3  # 3 = log2(8)


@cache_tensors(_CACHED_WINDOWS)
def _coords(
    window: Pair, pretrained_window: Pair, device: torch.device, dtype: torch.dtype
) -> Tensor:
    return relative_coords(window, pretrained_window, device, dtype).flatten(0, 1)


def relative_index(window: Pair, device: torch.device | None = None) -> Tensor:
    """Relative position index: the entry of :func:`relative_coords` for each query and key.

    Returns:
        int64 ``(N, N)``, [query, key], an index into the flattened ``(2 Wh - 1, 2 Ww - 1)``
        table; the offset is that of the query minus that of the key.
    """
    row = torch.arange(window[0], device=device).repeat_interleave(window[1])
    col = torch.arange(window[1], device=device).repeat(window[0])
    d_row = row[:, None] - row[None, :] + window[0] - 1
    d_col = col[:, None] - col[None, :] + window[1] - 1
    return d_row * (2 * window[1] - 1) + d_col


_index = cache_tensors(_CACHED_WINDOWS)(relative_index)


def make_cpb_mlp(num_heads: int) -> nn.Sequential:
    """The CPB network: two coordinates in, one value per head out."""
    return nn.Sequential(
        nn.Linear(2, CPB_HIDDEN),
        nn.ReLU(inplace=True),
        nn.Linear(CPB_HIDDEN, num_heads, bias=False),
    )


def position_bias_tables(
    cpb_mlps: Sequence[nn.Module], window: Pair, pretrained_window: Pair
) -> Tensor:
    """Position biases of a window, one per offset: CPB networks at all of its offsets.

    The networks, of equal shapes, are computed together: one by one, each would be a handful of
    products too small for a GPU.

    They are computed in at least float32, also under autocast and for networks in half precision,
    in which neighboring offsets of a large window would have equal coordinates.

    Args:
        cpb_mlps: n networks of :func:`make_cpb_mlp`.
        window: Current window in tokens.
        pretrained_window: Window in tokens at which the networks were trained.

    Returns:
        ``(n, nH, (2 Wh - 1) * (2 Ww - 1))``, each value in (0, 16); offsets in the order of
        :func:`relative_coords`.
    """
    parameters = list(zip(*(mlp.parameters() for mlp in cpb_mlps), strict=True))
    with without_autocast(parameters[0][0]):
        # One concatenation of all and one cast.
        flat = at_least_float32(torch.cat([p.flatten() for each in parameters for p in each]))
        parts = flat.split_with_sizes([len(each) * each[0].numel() for each in parameters])
        shapes = ((len(each), *each[0].shape) for each in parameters)
        w1, b1, w2 = (x.view(shape) for x, shape in zip(parts, shapes, strict=True))
        coords = _coords(window, pretrained_window, w1.device, w1.dtype)
        # Offsets come last: the table is read by offset, head by head.
        hidden = torch.baddbmm(b1[:, :, None], w1, coords.t().expand(len(w1), -1, -1))
        return LARGEST_BIAS * torch.sigmoid(torch.bmm(w2, F.relu(hidden)))


def expand_table(table: Tensor, window: Pair) -> Tensor:
    """From one bias per offset to one per query and key.

    Args:
        table: ``(..., (2 Wh - 1) * (2 Ww - 1))``.
        window: Window in tokens.

    Returns:
        ``(..., N, N)``, [query, key].
    """
    index = _index(window, table.device)
    # Indexing with `[..., index]` takes twice as long, its gradient four times.
    return table.index_select(-1, index.flatten()).unflatten(-1, index.shape)


def position_bias(cpb_mlp: nn.Module, window: Pair, pretrained_window: Pair) -> Tensor:
    """Position bias of one network: ``(nH, N, N)``; see :func:`position_bias_tables`."""
    return expand_table(position_bias_tables([cpb_mlp], window, pretrained_window)[0], window)
