"""The backbone that a checkpoint is of, built from its weights' shapes and loaded."""

import argparse

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.checkpoints.convert import Converted, arch_of
from swinv2_backbone.checkpoints.export import mlp_ratio_of
from swinv2_backbone.checkpoints.loading import load_into, open_checkpoint
from tools.utils import cli
from tools.utils.config_checks import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of :func:`load_model`."""
    parser.add_argument(
        'checkpoint',
        help='a path, a URL, hf://owner/name[/file] or swinv2://NAME, in any of the formats',
    )
    parser.add_argument('--prefix', help='use only keys of the checkpoint that start with it')
    parser.add_argument(
        '--pretrained-window-sizes',
        type=cli.window,
        metavar='W',
        help='windows that the position bias was trained with, where the '
        'checkpoint does not tell: a side in tokens, or one per stage as 16,16,16,8',
    )


def load_model(
    args: argparse.Namespace, checkpoint: str | None = None
) -> tuple[SwinTransformerV2, Converted]:
    """The backbone of a checkpoint, in eval mode, and what else was in the file.

    Args:
        args: With the arguments of :func:`add_arguments`.
        checkpoint: Another one instead of theirs.
    """
    source = checkpoint or args.checkpoint
    converted = open_checkpoint(source, args.prefix)
    given = args.pretrained_window_sizes
    return build_model(converted, source, given.size if given else 'auto').eval(), converted


def build_model(
    converted: Converted, source: str, windows: int | list | str | None
) -> SwinTransformerV2:
    """The backbone that weights are of, with them in it.

    Args:
        converted: The weights.
        source: Where they came from, for messages.
        windows: Its ``pretrained_window_sizes``.

    Raises:
        UserError: If they are not all of a backbone.
    """
    convolution = converted.state.get('patch_embed.proj.weight')
    arch = arch_of(converted.state)
    if convolution is None or convolution.ndim != 4 or 'embed_dims' not in arch:
        raise UserError(f'{source}: has no whole patch embedding ({converted.format} format)')
    if 0 in arch['depths'] or 0 in arch['num_heads']:
        raise UserError(
            f'{source}: has not all four stages (blocks: {arch["depths"]}); a part of '
            'the model is of no use here'
        )
    model = SwinTransformerV2(
        arch=arch,
        in_channels=convolution.shape[1],
        patch_size=convolution.shape[-1],
        mlp_ratio=mlp_ratio_of(converted.state),
        pretrained_window_sizes=windows,
    )
    load_into(model, converted, source)
    return model
