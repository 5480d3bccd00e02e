"""The backbone of a checkpoint, built from the shapes of its weights and loaded."""

import argparse

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.checkpoints import Converted, load_into, open_checkpoint, settings_of
from tools.utils import cli


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
        'checkpoint does not record them: a side in tokens, or one per stage as 16,16,16,8',
    )


def load_model(
    args: argparse.Namespace, checkpoint: str | None = None
) -> tuple[SwinTransformerV2, Converted]:
    """The backbone of a checkpoint, in eval mode, and what else was in the file.

    Args:
        args: With the arguments of :func:`add_arguments`.
        checkpoint: A checkpoint to load instead of ``args.checkpoint``.

    Raises:
        CheckpointError: If the weights are only part of a backbone, or do not fit.
    """
    source = checkpoint or args.checkpoint
    converted = open_checkpoint(source, args.prefix)
    settings = settings_of(converted.state, f'checkpoint {source} ({converted.format} format)')
    given = args.pretrained_window_sizes
    model = SwinTransformerV2(**settings, pretrained_window_sizes=given.size if given else 'auto')
    load_into(model, converted, source)
    return model.eval(), converted
