"""The architecture of a backbone, read from the shapes of its weights, and the shapes it implies.

All names are the backbone's own. State dicts may hold meta tensors: only shapes are read.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..arguments import ARCHITECTURES, NUM_STAGES, parse_arch
from ..layers.position_bias import CPB_HIDDEN
from .errors import CheckpointError

CONVOLUTION, _HIDDEN = 'patch_embed.proj.weight', 'layers.0.blocks.0.mlp.fc1.weight'

_ADAPT = (
    "`adapt_channels='repeat'` in init_cfg adapts the filters of the patch embed, 'zero' adds "
    'zeros for further channels'
)


def arch_of(state: Mapping[str, Tensor]) -> dict:
    """``embed_dims, depths, num_heads`` of weights, as far as they are there.

    Stages without weights have depth 0 and 0 heads; ``embed_dims`` is missing without patch embed.
    """
    depths, heads = [0] * NUM_STAGES, [0] * NUM_STAGES
    for key, value in state.items():
        parts = key.split('.')
        if parts[0] == 'layers' and parts[2] == 'blocks':
            stage = int(parts[1])
            depths[stage] = max(depths[stage], int(parts[3]) + 1)
            if parts[-1] == 'logit_scale' and value.ndim:
                heads[stage] = value.shape[0]
    arch: dict = dict(depths=tuple(depths), num_heads=tuple(heads))
    stem = state.get('patch_embed.norm.weight')
    return arch if stem is None else dict(embed_dims=stem.numel(), **arch)


def describe_arch(state: Mapping[str, Tensor]) -> str:
    """The architecture of weights, for messages: its name in quotes, or its numbers."""
    arch = arch_of(state)
    for name, settings in ARCHITECTURES.items():
        if arch == {key: settings[key] for key in arch}:
            return f"'{name}'"
    return f'a model of {arch}'


def mlp_ratio_of(state: Mapping[str, Tensor]) -> float:
    """A ratio that gives the MLPs of all stages the hidden channels that they have."""
    shapes = [
        value.shape
        for key, value in state.items()
        if key.endswith('.mlp.fc1.weight') and value.ndim == 2
    ]
    # Hidden channels are rounded down: the largest quotient is the closest to the true ratio.
    ratio = max((hidden / channels for hidden, channels in shapes), default=4.0)
    exact = all(int(channels * ratio) == hidden for hidden, channels in shapes)
    return ratio if exact else ratio * (1 + 1e-9)


def settings_of(state: Mapping[str, Tensor], source: str = 'the weights') -> dict:
    """``arch, in_channels, patch_size, mlp_ratio`` of the backbone that has these weights.

    Args:
        state: The weights.
        source: Where they came from, for messages.

    Raises:
        CheckpointError: If the patch embed or a stage is missing, or no backbone has such an arch.
    """
    convolution, arch = state.get(CONVOLUTION), arch_of(state)
    if convolution is None or convolution.ndim != 4 or 'embed_dims' not in arch:
        raise CheckpointError(f'{source}: the patch embed is missing or incomplete')
    if 0 in arch['depths'] or 0 in arch['num_heads']:
        raise CheckpointError(
            f'{source}: not all four stages are there (blocks: {arch["depths"]}); part of a model '
            'cannot be used here'
        )
    try:
        parse_arch(arch)
    except ValueError as error:
        raise CheckpointError(f'{source}: the shapes fit no backbone ({error})') from error
    return dict(
        arch=arch,
        in_channels=convolution.shape[1],
        patch_size=convolution.shape[-1],
        mlp_ratio=mlp_ratio_of(state),
    )


def expected_parameters(
    arch: Mapping, in_channels: int = 3, patch_size: int = 4, mlp_ratio: float = 4.0
) -> dict[str, Tensor]:
    """Names and shapes of all parameters of a backbone, as meta tensors.

    A test holds them equal to the state dict of the model, which this package does not import. The
    arguments are those of :func:`settings_of`.
    """
    dims: int = arch['embed_dims']
    shapes: dict[str, tuple[int, ...]] = {
        'patch_embed.proj.weight': (dims, in_channels, patch_size, patch_size),
        'patch_embed.proj.bias': (dims,),
        **_norm('patch_embed.norm', dims),
    }
    for i, (depth, heads) in enumerate(zip(arch['depths'], arch['num_heads'], strict=True)):
        channels = dims * 2**i
        hidden = int(channels * mlp_ratio)
        for j in range(depth):
            block = f'layers.{i}.blocks.{j}'
            shapes |= {
                f'{block}.attn.logit_scale': (heads, 1, 1),
                f'{block}.attn.cpb_mlp.0.weight': (CPB_HIDDEN, 2),
                f'{block}.attn.cpb_mlp.0.bias': (CPB_HIDDEN,),
                f'{block}.attn.cpb_mlp.2.weight': (heads, CPB_HIDDEN),
                f'{block}.attn.qkv.weight': (3 * channels, channels),
                f'{block}.attn.q_bias': (channels,),
                f'{block}.attn.v_bias': (channels,),
                f'{block}.attn.proj.weight': (channels, channels),
                f'{block}.attn.proj.bias': (channels,),
                **_norm(f'{block}.norm1', channels),
                f'{block}.mlp.fc1.weight': (hidden, channels),
                f'{block}.mlp.fc1.bias': (hidden,),
                f'{block}.mlp.fc2.weight': (channels, hidden),
                f'{block}.mlp.fc2.bias': (channels,),
                **_norm(f'{block}.norm2', channels),
            }
        if i < NUM_STAGES - 1:
            merging = f'layers.{i}.downsample'
            shapes[f'{merging}.reduction.weight'] = (2 * channels, 4 * channels)
            shapes |= _norm(f'{merging}.norm', 2 * channels)
        shapes |= _norm(f'norm{i}', channels)
    return {name: torch.empty(shape, device='meta') for name, shape in shapes.items()}


def _norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f'{name}.weight': (channels,), f'{name}.bias': (channels,)}


def explain_mismatch(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str:
    """The likely cause, for messages, why weights in a file (theirs) do not fit a backbone's."""
    for key, sides, argument in (
        (CONVOLUTION, slice(1, 2), 'in_channels'),
        (CONVOLUTION, slice(2, 4), 'patch_size'),
        (_HIDDEN, slice(0, 1), 'mlp_ratio'),
    ):
        a, b = (tuple(state[key].shape) if key in state else () for state in (theirs, ours))
        same_channels = key != _HIDDEN or a[1:] == b[1:]
        if len(a) == len(b) and a[sides] != b[sides] and same_channels:
            way_out = f' {_ADAPT}' if argument == 'in_channels' else ''
            return f'The file was made with another {argument}.{way_out}'
    their_arch, our_arch = arch_of(theirs), arch_of(ours)
    stages = [i for i, depth in enumerate(our_arch['depths']) if depth]
    if their_arch.get('embed_dims') == our_arch['embed_dims'] and all(
        their_arch[key][i] == our_arch[key][i] for key in ('depths', 'num_heads') for i in stages
    ):
        return f'Both are {describe_arch(theirs)}: the file is damaged, or was changed.'
    return f'The file holds {describe_arch(theirs)}, the backbone is {describe_arch(ours)}.'
