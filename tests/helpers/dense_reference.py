"""A second implementation of SwinV2: simple, slow, obviously right.

No windows are cut, nothing is padded or rolled. The logits of all pairs of tokens of a map are
computed, and masked by an explicit rule on the coordinates of the two tokens. It shares no code
with the package, reads parameters from a state dict, and computes in float64.
"""

import math

import torch
import torch.nn.functional as F


def dense_forward(
    state, image, depths, num_heads, windows, pretrained_windows, patch_size=4, dtype=torch.float64
):
    """Feature maps ``(B, C, H, W)`` of all stages.

    `windows` and `pretrained_windows` are (height, width) pairs, one per stage.
    """
    p = {key: value.to(dtype) for key, value in state.items()}
    image = image.to(dtype)
    image = F.pad(image, (0, -image.shape[3] % patch_size, 0, -image.shape[2] % patch_size))
    x = F.conv2d(image, p['patch_embed.proj.weight'], p['patch_embed.proj.bias'], stride=patch_size)
    x = norm(x.permute(0, 2, 3, 1), p, 'patch_embed.norm')
    outputs = []
    for i, depth in enumerate(depths):
        for j in range(depth):
            name = f'layers.{i}.blocks.{j}'
            x = x + norm(
                attend_all(
                    x,
                    p,
                    f'{name}.attn',
                    num_heads[i],
                    windows[i],
                    pretrained_windows[i],
                    shifted=j % 2 == 1,
                ),
                p,
                f'{name}.norm1',
            )
            hidden = F.gelu(F.linear(x, p[f'{name}.mlp.fc1.weight'], p[f'{name}.mlp.fc1.bias']))
            x = x + norm(
                F.linear(hidden, p[f'{name}.mlp.fc2.weight'], p[f'{name}.mlp.fc2.bias']),
                p,
                f'{name}.norm2',
            )
        outputs.append(norm(x, p, f'norm{i}').permute(0, 3, 1, 2))
        if i < len(depths) - 1:
            x = merge_patches(x, p, f'layers.{i}.downsample')
    return outputs


def norm(x, p, name):
    return F.layer_norm(x, x.shape[-1:], p[f'{name}.weight'], p[f'{name}.bias'])


def merge_patches(x, p, name):
    batch, height, width, channels = x.shape
    out = x.new_zeros(batch, math.ceil(height / 2), math.ceil(width / 2), 4 * channels)
    for position, (row, col) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        part = x[:, row::2, col::2]
        out[
            :, : part.shape[1], : part.shape[2], position * channels : (position + 1) * channels
        ] = part
    return norm(F.linear(out, p[f'{name}.reduction.weight']), p, f'{name}.norm')


def attend_all(x, p, name, num_heads, window, pretrained, shifted):
    batch, height, width, channels = x.shape
    row = torch.arange(height).repeat_interleave(width)
    col = torch.arange(width).repeat(height)
    attn_mask = same_window(row, height, window[0], shifted)
    attn_mask &= same_window(col, width, window[1], shifted)
    tokens = x.reshape(batch, height * width, channels)
    wq, wk, wv = p[f'{name}.qkv.weight'].chunk(3)
    q = heads(F.linear(tokens, wq, p[f'{name}.q_bias']), num_heads)
    k = heads(F.linear(tokens, wk), num_heads)
    v = heads(F.linear(tokens, wv, p[f'{name}.v_bias']), num_heads)
    cosine = (q / q.norm(dim=-1, keepdim=True)) @ (k / k.norm(dim=-1, keepdim=True)).mT
    scale = p[f'{name}.logit_scale'].clamp(max=math.log(100)).exp()
    logits = cosine * scale + bias_of_offsets(row, col, p, name, pretrained)
    weights = logits.masked_fill(~attn_mask, -math.inf).softmax(-1)
    out = (weights @ v).transpose(1, 2).reshape(batch, height * width, channels)
    out = F.linear(out, p[f'{name}.proj.weight'], p[f'{name}.proj.bias'])
    return out.reshape(batch, height, width, channels)


def heads(x, num_heads):
    return x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2)


def same_window(position, size, window, shifted):
    """Whether two positions along an axis are in one window, and neighbors in it, ``(N, N)``.

    A shifted axis is rolled by half a window, padding included. Positions that wrap around are not
    neighbors of the others in their window.
    """
    window = min(window, size)
    shift = window // 2 if shifted and window < size else 0
    padded = math.ceil(size / window) * window
    index = (position - shift) % padded // window
    wraps = position < shift
    return (index[:, None] == index[None]) & (wraps[:, None] == wraps[None])


def bias_of_offsets(row, col, p, name, pretrained):
    """Position bias ``(nH, N, N)`` of all pairs of tokens, from their offsets in the image."""
    d_row, d_col = row[:, None] - row[None], col[:, None] - col[None]
    height, width = int(row.max()) + 1, int(col.max()) + 1
    offsets = torch.cartesian_prod(torch.arange(1 - height, height), torch.arange(1 - width, width))
    which = (d_row + height - 1) * (2 * width - 1) + d_col + width - 1
    unit = torch.tensor([max(side - 1, 1) for side in pretrained])
    t = 8 * offsets.to(p[f'{name}.cpb_mlp.0.weight']) / unit
    t = t.sign() * torch.log2(1 + t.abs()) / math.log2(8)
    hidden = F.relu(F.linear(t, p[f'{name}.cpb_mlp.0.weight'], p[f'{name}.cpb_mlp.0.bias']))
    bias = 16 * F.linear(hidden, p[f'{name}.cpb_mlp.2.weight']).sigmoid()
    return bias.T[:, which]
