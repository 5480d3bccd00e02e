"""Convert SwinV2 weights between the formats of the libraries that have it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from swinv2_backbone.checkpoints import FORMATS, convert
from swinv2_backbone.checkpoints.convert import DROPPABLE
from tools.utils import cli
from tools.utils.errors import UserError


def parse_args():
    parser = cli.OneLineParser(
        description=__doc__,
        epilog='A source without classifier (a '
        'backbone of ours, a headless model) becomes a backbone there.',
    )
    parser.add_argument(
        'source',
        metavar='SRC',
        help='a path, a URL, hf://owner/name[/file] or swinv2://NAME, in any of the formats',
    )
    parser.add_argument(
        'destination',
        metavar='DST',
        type=Path,
        help='the file to write; for hf a folder, with config.json',
    )
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
        choices=DROPPABLE,
    )
    parser.add_argument(
        '--pretrained-window-sizes',
        nargs='+',
        type=cli.positive,
        metavar='W',
        help='windows that the position bias was trained with, where SRC does not '
        'record them: one number, a height and a width, or one per stage',
    )
    parser.add_argument(
        '--window-size',
        type=cli.positive,
        help='window that the result runs with, for formats whose files are for one size '
        '(default: as recorded in SRC, or the pretrained one)',
    )
    parser.add_argument(
        '--img-size',
        type=cli.positive,
        help='side in pixels of the images that it runs on (default: as recorded in SRC, or in '
        'proportion to the window)',
    )
    parser.add_argument('--force', action='store_true', help='overwrite DST')
    return parser.parse_args()


def main():
    options = vars(parse_args())
    sizes = options['pretrained_window_sizes']
    if sizes and len(sizes) == 1:
        options['pretrained_window_sizes'] = sizes[0]
    try:
        print(convert(**options))
    except (ValueError, OSError, ImportError) as error:
        raise UserError(str(error)) from error


if __name__ == '__main__':
    cli.run(main)
