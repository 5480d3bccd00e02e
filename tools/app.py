"""A page on which visitors try models on images of theirs: predictions, features, position bias.

Needs gradio: pip install '.[demo]'.
"""

import argparse
import os
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.inference.explorer import Explorer
from tools.inference.listing import TORCH, list_below, list_models
from tools.inference.page import STYLE, build_page
from tools.inference.uploads import MAX_BYTES, MAX_PIXELS
from tools.utils import cli
from tools.utils.errors import UserError

if TYPE_CHECKING:
    import gradio as gr


def parse_args() -> argparse.Namespace:
    parser = cli.OneLineParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'work_dirs',
        nargs='*',
        type=Path,
        metavar='WORK_DIR',
        help='of trainings: the checkpoints that can be chosen (default: all in work_dirs)',
    )
    parser.add_argument(
        '--exported',
        nargs='+',
        type=Path,
        default=[],
        metavar='FILE',
        help='.onnx or .xml files of the newest checkpoint, by tools/deployment/export.py '
        '(default: those in the work dirs)',
    )
    parser.add_argument(
        '--window-size',
        nargs='+',
        type=cli.window,
        default=[cli.window(side) for side in ('8', '12', '16', '24')],
        metavar='W',
        help="the attention windows that can be chosen, beside the config's (default: 8 12 16 24)",
    )
    parser.add_argument('--device', type=cli.device, default='cpu', help='default: cpu')
    parser.add_argument('--host', default='127.0.0.1', help='address to bind (default: 127.0.0.1)')
    parser.add_argument('--port', type=cli.positive, default=7860, help='default: 7860')
    for name, default, what in (('bytes', MAX_BYTES, 'file'), ('pixels', MAX_PIXELS, 'image')):
        parser.add_argument(
            f'--max-{name}',
            type=cli.positive,
            default=default,
            help=f'of the {what} that a visitor sends (default: {default:,})',
        )
    return parser.parse_args()


def serve(page: 'gr.Blocks', args: argparse.Namespace) -> None:
    """Serve the page until it is interrupted."""
    import gradio as gr

    fonts = dict(font=['system-ui', 'sans-serif'], font_mono=['monospace'])  # None from elsewhere.
    page.launch(
        server_name=args.host,
        server_port=args.port,
        share=False,
        max_file_size=args.max_bytes,
        ssr_mode=False,
        footer_links=[],
        enable_monitoring=False,
        theme=gr.themes.Default(**fonts),
        css=STYLE,
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f'-> http://{args.host}:{args.port} (Ctrl-C ends it)', flush=True)
    page.block_thread()


def stop(*_) -> None:
    """End the program, once: a second signal must not interrupt the removal of visitors' files."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit()


def main() -> None:
    args = parse_args()
    if not find_spec('gradio'):
        raise UserError("needs gradio: pip install '.[demo]'")
    listed = list_models(args.work_dirs, args.exported) if args.work_dirs else None
    if args.exported and not listed:
        raise UserError('--exported: name the work dir that the files are of')
    explorer = Explorer(listed or list_below(Path('work_dirs')), args.device)
    # What cannot be loaded is found before it serves.
    explorer.model(next(iter(explorer.listed)), TORCH)
    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix='swinv2_app_') as folder:
        os.environ.update(
            GRADIO_TEMP_DIR=folder,
            GRADIO_ANALYTICS_ENABLED='False',
            HF_HUB_DISABLE_TELEMETRY='1',
            DO_NOT_TRACK='1',
        )
        serve(build_page(explorer, args), args)


if __name__ == '__main__':
    cli.run(main)
