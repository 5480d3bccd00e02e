"""The backbone's weights under the names of another library, with what else its files hold."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..layers.position_bias import relative_coords, relative_index
from ..layers.windows import Pair, WindowGrid
from .convert import arch_of, name_keys
from .errors import CheckpointError
from .key_rules import Format, StateDict, translate


def from_backbone(state: Mapping, head: Mapping, fmt: Format) -> StateDict:
    """Weights of ours under the names of another library.

    Args:
        state: Parameters under the backbone's names.
        head: ``head.weight`` and ``head.bias`` of an ImageNet classifier, or nothing: then the
            result is a backbone's, without the classifier's prefix.
        fmt: The library's format.

    Raises:
        CheckpointError: If a parameter has no place there.
    """
    theirs, unknown = translate(state, fmt, to_ours=False)
    if unknown:
        raise CheckpointError(f'the {fmt.name} format has no place for {name_keys(unknown)}')
    if not head:
        return theirs
    if head.keys() != {'head.weight', 'head.bias'}:
        raise CheckpointError(f'its classifier has {name_keys(head)} alone')
    renamed = {
        fmt.head.theirs[0].fill((('p', key.rpartition('.')[2]),)): value
        for key, value in head.items()
    }
    return {fmt.prefix + key: value for key, value in theirs.items()} | renamed


def official_buffers(
    depths: Sequence[int],
    trained: Sequence[Pair],
    window: Pair,
    map_size: Pair,
    shrinks: bool = True,
) -> StateDict:
    """What the official model keeps among its weights, under its names.

    Args:
        depths: Blocks of each stage.
        trained: Window in tokens that the position bias of each stage was trained with.
        window: Window in tokens that the model runs with.
        map_size: Height and width in tokens of the first stage's map.
        shrinks: Whether windows larger than a map shrink to it (torchvision's do not).

    Returns:
        ``relative_coords_table (1, 2 Wh - 1, 2 Ww - 1, 2)`` and ``relative_position_index (N, N)``
        of each block; ``attn_mask (nW, N, N)``, 0 or -100, of those that shift.

    Raises:
        CheckpointError: If the windows do not cut the maps into whole windows.
    """
    buffers = {}
    for i, depth in enumerate(depths):
        size = (map_size[0] // 2**i, map_size[1] // 2**i)
        for j in range(depth):
            grid = WindowGrid.for_map(size, window, shifted=j % 2 == 1)
            if grid.padded_size != grid.size:
                raise CheckpointError(
                    f'windows of {grid.window} tokens do not divide the map of {size} tokens of '
                    f'stage {i}; choose other --window-size or --img-size'
                )
            block, side = f'layers.{i}.blocks.{j}', grid.window if shrinks else window
            buffers[f'{block}.attn.relative_coords_table'] = relative_coords(side, trained[i])[None]
            buffers[f'{block}.attn.relative_position_index'] = relative_index(side)
            visible = grid.attention_mask(torch.device('cpu'))
            if visible is not None:
                buffers[f'{block}.attn_mask'] = -100.0 * (~visible).float()
    return buffers


def export_buffers(buffers: Mapping, fmt: Format) -> StateDict:
    """Those of the buffers of :func:`official_buffers` that a library saves, under its names."""
    kept = {key: value for key, value in buffers.items() if key.endswith(tuple(fmt.buffers))}
    if fmt.flat_index:
        kept = {
            key: value.flatten() if key.endswith('relative_position_index') else value
            for key, value in kept.items()
        }
    return translate(kept, fmt, to_ours=False)[0]


def hf_config(
    state: Mapping,
    head: Mapping,
    trained: Sequence[Pair],
    window: int,
    image_size: int,
    labels: Mapping | None = None,
) -> dict:
    """The config.json with which transformers builds the model of these weights.

    Args:
        state: Parameters under the backbone's names.
        head: The classifier's, or nothing.
        trained: Window in tokens that the position bias of each stage was trained with.
        window: Window in tokens that the model runs with.
        image_size: Side of the image in pixels.
        labels: Names of the classes by index; LABEL_0 and so on if not given.

    Raises:
        CheckpointError: If a window is not square, which transformers has no word for.
    """
    if any(height != width for height, width in trained):
        raise CheckpointError(f'the hf format has no place for pretrained windows of {trained}')
    arch = arch_of(state)
    convolution: Tensor = state['patch_embed.proj.weight']
    config = dict(
        architectures=['Swinv2ForImageClassification' if head else 'Swinv2Model'],
        model_type='swinv2',
        image_size=image_size,
        patch_size=convolution.shape[-1],
        num_channels=convolution.shape[1],
        embed_dim=arch['embed_dims'],
        depths=list(arch['depths']),
        num_heads=list(arch['num_heads']),
        window_size=window,
        pretrained_window_sizes=[height for height, _ in trained],
        mlp_ratio=mlp_ratio_of(state),
        qkv_bias=True,
        hidden_act='gelu',
        layer_norm_eps=1e-5,
    )
    if head:
        count = head['head.weight'].shape[0]
        if not labels or len(labels) != count:
            labels = {i: f'LABEL_{i}' for i in range(count)}
        config |= dict(id2label=labels, label2id={name: int(i) for i, name in labels.items()})
    return config


def mlp_ratio_of(state: Mapping) -> float:
    """A ratio that gives the MLPs of all stages the hidden channels that they have."""
    shapes = [value.shape for key, value in state.items() if key.endswith('.mlp.fc1.weight')]
    # Hidden channels are rounded down: the largest quotient is the closest to what was asked for.
    ratio = max(hidden / channels for hidden, channels in shapes)
    exact = all(int(channels * ratio) == hidden for hidden, channels in shapes)
    return ratio if exact else ratio * (1 + 1e-9)
