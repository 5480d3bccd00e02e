"""How deep in the backbone a parameter is, for layer-wise learning rate decay."""

from collections.abc import Sequence


def layer_depth(
    param_name: str, prefix: str, depths: Sequence[int], out_indices: Sequence[int]
) -> tuple[int, int]:
    """Layer of a parameter, and the number of layers.

    Layer 0 is the patch embed; the blocks follow, each stage's patch merging with its last block.
    The last layer is the output norms, and all parameters without the prefix (heads).

    Args:
        param_name: Name of the parameter.
        prefix: Prefix of the backbone's parameters in the model, such as ``'backbone.'``.
        depths: Number of blocks of each stage that was built.
        out_indices: Stages that have an output norm.

    Raises:
        ValueError: If the parameter has the prefix, but is in none of these layers.
    """
    layers = [['patch_embed.']]
    for i, depth in enumerate(depths):
        layers += [[f'layers.{i}.blocks.{j}.'] for j in range(depth)]
        layers[-1].append(f'layers.{i}.downsample.')
    layers.append([f'norm{i}.' for i in out_indices])
    if not param_name.startswith(prefix):
        return len(layers) - 1, len(layers)
    for layer, starts in enumerate(layers):
        if param_name.removeprefix(prefix).startswith(tuple(starts)):
            return layer, len(layers)
    raise ValueError(
        f'{param_name}: is in no layer of a SwinTransformerV2 (patch embed, blocks, patch '
        'mergings, output norms), so layer-wise decay has no learning rate for it'
    )
