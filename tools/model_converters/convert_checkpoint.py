"""Convert SwinV2 weights between the formats of the libraries that have it."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from swinv2_backbone.arguments import is_int, parse_windows
from swinv2_backbone.checkpoints.convert import Converted, arch_of
from swinv2_backbone.checkpoints.export import (
    export_buffers,
    from_backbone,
    hf_config,
    official_buffers,
)
from swinv2_backbone.checkpoints.files import (
    atomic_file,
    hash_in_name,
    require_safetensors,
    write_checkpoint,
)
from swinv2_backbone.checkpoints.formats import FORMATS, HF
from swinv2_backbone.checkpoints.key_rules import Format
from swinv2_backbone.checkpoints.loading import open_checkpoint
from swinv2_backbone.checkpoints.releases import find_release
from tools.utils import cli
from tools.utils.checkpoint_model import build_model
from tools.utils.config_checks import UserError

# What transformers looks for, in its order.
HF_FILES = ('model.safetensors', 'pytorch_model.bin')


def parse_args():
    parser = cli.OneLineParser(
        description=__doc__,
        epilog='A source without classifier (a '
        'backbone of ours, a headless model) becomes a backbone there.',
    )
    parser.add_argument(
        'src', help='a path, a URL, hf://owner/name[/file] or swinv2://NAME, in any of the formats'
    )
    parser.add_argument('dst', type=Path, help='the file to write; for hf a folder, with config')
    parser.add_argument('--to', required=True, choices=list(FORMATS), help='the format to write')
    parser.add_argument(
        '--safetensors', action='store_true', help="write safetensors instead of torch's format"
    )
    parser.add_argument('--prefix', help='use only keys of SRC that start with it')
    parser.add_argument(
        '--drop',
        nargs='+',
        default=[],
        help='leave these out, for formats that have no place for them',
        choices=['norm0', 'norm1', 'norm2', 'norm3', 'head'],
    )
    parser.add_argument(
        '--pretrained-window-sizes',
        nargs='+',
        type=cli.positive,
        metavar='W',
        help='windows that the position bias was trained with, where SRC does not '
        'tell: one number, a height and a width, or one per stage',
    )
    parser.add_argument(
        '--window-size',
        type=cli.positive,
        help='window that the result runs '
        'with, for formats that keep geometry (default: as SRC, where it tells, or '
        'the pretrained one)',
    )
    parser.add_argument(
        '--img-size',
        type=cli.positive,
        help='side in pixels of the images '
        'that it runs on (default: as SRC, where it tells, or in proportion to the '
        'window)',
    )
    parser.add_argument('--force', action='store_true', help='overwrite DST')
    return parser.parse_args()


def pretrained_windows(args, converted: Converted, fmt: Format) -> int | list[int] | str | None:
    """What to build the backbone with: as asked for, as SRC tells, or None where none is needed."""
    given = args.pretrained_window_sizes
    if given:
        windows = given[0] if len(given) == 1 else given
        parse_windows('--pretrained-window-sizes', windows)
        return windows
    if converted.windows:
        return 'auto'
    if keeps_geometry(fmt):
        raise UserError(
            f'{args.src} does not tell the windows that its position bias was trained '
            f'with, and the {fmt.name} format notes them: give '
            '--pretrained-window-sizes'
        )
    return None


def keeps_geometry(fmt: Format) -> bool:
    """Whether files of a format are for a window and a size of image."""
    return bool(fmt.buffers) or fmt is HF


def running(args, converted: Converted, trained: list) -> tuple[int, int]:
    """The window and the size of the image that the result runs with: as asked for, or as SRC."""
    window = args.window_size or (converted.running or (None,))[0]
    release = find_release(args.src)
    window = (
        window
        or converted.config.get('window_size')
        or (release.running_window if release else trained[0][0])
    )
    size = (
        args.img_size
        or converted.config.get('image_size')
        or (release.image_size if release else 32 * trained[-1][0] * window // trained[0][0])
    )
    if not is_int(window) or not is_int(size):
        raise UserError(
            f'{args.src} runs with windows of {window} on images of {size}; give one '
            '--window-size and one --img-size'
        )
    return window, size


def destination(args, fmt: Format) -> Path:
    """The file to write, if that is allowed."""
    file = args.dst
    if fmt is HF:
        file = args.dst / HF_FILES[0 if args.safetensors else 1]
        if args.dst.is_file():
            raise UserError(f'{args.dst} is a file; for hf, DST is a folder')
    elif args.dst.is_dir():
        raise UserError(f'{args.dst} is a folder; for {fmt.name}, DST is a file')
    if args.safetensors:
        require_safetensors(file)
    if hash_in_name(file.name):
        raise UserError(
            f'{file}: the digits at its end say sha256, and the file that is written '
            'will have another; choose another name'
        )
    if not keeps_geometry(fmt) and (args.window_size or args.img_size):
        raise UserError(f'--window-size, --img-size: the {fmt.name} format keeps neither')
    written = [args.dst / name for name in (*HF_FILES, 'config.json')] if fmt is HF else [file]
    for existing in written:
        if existing.exists() and not args.force:
            raise UserError(f'{existing} exists; --force overwrites it')
    return file


def without(modules: list[str], state: dict) -> dict:
    """`state` without the parameters of some modules."""
    return {key: value for key, value in state.items() if key.split('.')[0] not in modules}


def write_hf_config(config: dict, file: Path) -> None:
    """Write config.json, and remove weights in the other container, which would be loaded first."""
    with atomic_file(file.parent / 'config.json') as partial:
        Path(partial).write_text(json.dumps(config, indent=2) + '\n')
    for name in HF_FILES:
        if name != file.name:
            (file.parent / name).unlink(missing_ok=True)


def convert(args) -> None:
    """Read, check, rename, write, and say so."""
    fmt = FORMATS[args.to]
    file = destination(args, fmt)
    converted = open_checkpoint(args.src, args.prefix)
    setting = pretrained_windows(args, converted, fmt)
    # Held against the backbone that the weights are of.
    model = build_model(converted, args.src, setting)
    trained = [stage.pretrained_window for stage in model.layers]
    state, head = (without(args.drop, part) for part in (converted.state, converted.head))
    dropped = (converted.state.keys() | converted.head.keys()) - state.keys() - head.keys()
    if absent := set(args.drop) - {key.split('.')[0] for key in dropped}:
        raise UserError(f'--drop: the source has no {", ".join(sorted(absent))}')
    theirs, geometry, config = from_backbone(state, head, fmt), '', {}
    if keeps_geometry(fmt):
        window, size = running(args, converted, trained)
        geometry = f'; for windows of {window} on images of {size} x {size}'
    if fmt.buffers:
        side = size // state['patch_embed.proj.weight'].shape[-1]
        buffers = export_buffers(
            official_buffers(
                arch_of(state)['depths'], trained, (window, window), (side, side), fmt.shrinks
            ),
            fmt,
        )
        prefix = fmt.prefix if head else ''
        theirs |= {prefix + key: value for key, value in buffers.items()}
    if fmt is HF:
        config = hf_config(state, head, trained, window, size, converted.config.get('id2label'))
    write_checkpoint(
        theirs,
        file,
        None if args.safetensors else fmt.wrapper,
        None if setting is None else trained,
        args.safetensors,
    )
    if config:
        write_hf_config(config, file)
    print(
        f'{args.src} ({converted.format}) -> {file} ({fmt.name}): {len(theirs)} tensors{geometry}'
        + (f'; left out: {", ".join(sorted(dropped))}' if dropped else '')
    )


def main():
    convert(parse_args())


if __name__ == '__main__':
    cli.run(main)
