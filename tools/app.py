"""A page on which visitors try models on images of theirs: predictions, features, position bias.

Needs gradio: pip install '.[demo]'.
"""

import argparse
import base64
import html
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2

from tools.inference.explorer import Explorer, Found, Shown
from tools.inference.listing import TORCH, list_below, list_models
from tools.inference.uploads import MAX_BYTES, MAX_PIXELS, Refused, read_upload
from tools.utils import cli
from tools.utils.errors import UserError

if TYPE_CHECKING:
    import gradio as gr

CONFIGURED = "the config's"
# Files of visitors are deleted when they are this old, in seconds; all of them when the page ends.
_KEPT = 600
_WAITING = 20
_TITLE = 'SwinV2 as a backbone'
_CSS = """
.gradio-container {max-width: 1400px !important}
.drawn :is(.image-container, button, .image-frame, img) {width: 100% !important}
.drawn img {max-height: 80vh; object-fit: contain}
.found {list-style: none; padding: 0; margin: 0}
.found span {display: inline-block; width: 1em; height: 1em; border-radius: 3px;
    margin-right: .6em; vertical-align: -.1em; border: 1px solid #888}
.shown {display: grid; gap: 16px}
.maps {grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr))}
.heads {grid-template-columns: repeat(auto-fill, minmax(80px, 1fr)); margin-bottom: 24px}
.shown figure {margin: 0} .shown img {width: 100%; image-rendering: pixelated}
.shown figcaption {font-size: 85%}
footer {display: none !important}
"""


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


def legend(found: list[Found]) -> str:
    """The classes in a prediction, as HTML."""
    if not found:
        return '<p class="found">Nothing was found.</p>'
    items = [
        f'<li><span style="background: rgb{tuple(map(int, each.color))}"></span>'
        f'{html.escape(each.name)}: {html.escape(each.amount)}</li>'
        for each in found
    ]
    return f'<ul class="found">{"".join(items)}</ul>'


def figures(shown: Shown, kind: str) -> str:
    """RGB images and their captions, as HTML.

    Args:
        kind: Another class of the list for the style sheet.
    """
    items = []
    for image, caption in shown:
        file = base64.b64encode(cv2.imencode('.png', image[..., ::-1])[1]).decode()
        text = html.escape(caption)
        items.append(
            f'<figure><figcaption>{text}</figcaption>'
            f'<img alt="{text}" src="data:image/png;base64,{file}"></figure>'
        )
    return f'<div class="shown {kind}">{"".join(items)}</div>'


class Answers:
    """Answers what visitors ask, as the outputs of the page."""

    def __init__(self, explorer: Explorer, args: argparse.Namespace) -> None:
        self.explorer = explorer
        self.windows = {CONFIGURED: None, **{each.text: each for each in args.window_size}}
        self.read = partial(read_upload, max_bytes=args.max_bytes, max_pixels=args.max_pixels)

    def answer(
        self, path: str | None, name: str, runtime: str, window: str, score_thr: float
    ) -> Iterator[tuple]:
        """The prediction first, then it with the feature maps and position bias.

        Raises:
            gradio.Error: Whose message, one line, is shown on the page.
        """
        import gradio as gr

        try:
            yield from self._answer(path, name, runtime, window, score_thr)
        except Refused as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        except Exception as error:
            logging.exception('a prediction failed')
            message = 'This failed. Who runs this page finds the reason in its log.'
            raise gr.Error(message, duration=None, print_exception=False) from error

    def _answer(
        self, path: str | None, name: str, runtime: str, window: str, score_thr: float
    ) -> Iterator[tuple]:
        """The same, with the errors as they are raised."""
        if not path:
            raise Refused('Choose an image first.')
        entry = self.explorer.listed.get(name)
        if entry is None or runtime not in entry.runtimes or window not in self.windows:
            raise Refused('Choose a checkpoint, runtime and window that are listed.')
        image, size = self.read(Path(path)), self.windows[window]
        drawn, found = self.explorer.predict(name, runtime, size, image.copy(), score_thr)
        yield drawn, legend(found), None, None
        features = figures(self.explorer.features(name, size, image), 'maps')
        bias = [
            f'<h4>{html.escape(title)}</h4>{figures(shown, "heads")}'
            for title, shown in self.explorer.bias(name, size)
        ]
        yield drawn, legend(found), features, ''.join(bias)


def build_page(explorer: Explorer, args: argparse.Namespace) -> 'gr.Blocks':
    """The page, not yet served."""
    import gradio as gr

    listed = explorer.listed
    tasks = list(dict.fromkeys(each.task for each in listed.values()))
    names = {task: [name for name in listed if listed[name].task == task] for task in tasks}
    first = names[tasks[0]][0]

    def on_task(task: str) -> tuple:
        name = names[task][0]
        chosen = gr.Dropdown(choices=names[task], value=name)
        return chosen, *on_checkpoint(name), gr.Slider(visible=task == 'detection')

    def on_checkpoint(name: str) -> tuple:
        runtimes = gr.Radio(choices=list(listed[name].runtimes), value=TORCH)
        return runtimes, on_runtime(TORCH)

    def on_runtime(runtime: str) -> gr.Dropdown:
        # The window of an exported file is that of its export.
        if runtime == TORCH:
            return gr.Dropdown(interactive=True)
        return gr.Dropdown(value=CONFIGURED, interactive=False)

    answers = Answers(explorer, args)
    kept = dict(analytics_enabled=False, delete_cache=(60, _KEPT))
    with gr.Blocks(title=_TITLE, **kept) as page:
        gr.Markdown(
            f'# {_TITLE}\nChoose an image and a model; see the prediction, '
            'the feature maps and the position bias.'
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                image = gr.Image(
                    type='filepath', label='image', sources=['upload', 'clipboard'], height=300
                )
                # Gradio would have Pillow open it before it is checked. (Not a subclass: of those
                # gradio writes a .pyi file beside the source.)
                image.preprocess = lambda sent: getattr(sent, 'path', None)
                task = gr.Radio(tasks, value=tasks[0], label='task')
                checkpoint = gr.Dropdown(names[tasks[0]], value=first, label='checkpoint')
                runtime = gr.Radio(list(listed[first].runtimes), value=TORCH, label='runtime')
                window = gr.Dropdown(
                    list(answers.windows), value=CONFIGURED, label='attention window, in tokens'
                )
                score_thr = gr.Slider(
                    0, 1, 0.3, step=0.05, label='smallest score', visible=tasks[0] == 'detection'
                )
                run = gr.Button('Predict', variant='primary')
            with gr.Column(scale=2, min_width=300), gr.Tabs():
                with gr.Tab('Prediction'):
                    drawn = gr.Image(
                        label='prediction',
                        format='png',
                        buttons=['fullscreen'],
                        elem_classes='drawn',
                    )
                    found = gr.HTML()
                with gr.Tab('Features'):
                    gr.Markdown(
                        'The maps that the backbone returns, of the image scaled to at most 512 '
                        'pixels a side: the first three principal components as red, green, blue.'
                    )
                    features = gr.HTML()
                with gr.Tab('Bias'):
                    gr.Markdown(
                        'The position bias of the first block of each stage: what each head adds '
                        'to the logit of the center of a window with each of its tokens.'
                    )
                    bias = gr.HTML()
        quick = dict(queue=False, show_progress='hidden', api_visibility='private')
        task.change(on_task, task, [checkpoint, runtime, window, score_thr], **quick)
        checkpoint.change(on_checkpoint, checkpoint, [runtime, window], **quick)
        runtime.change(on_runtime, runtime, window, **quick)
        run.click(
            answers.answer,
            [image, checkpoint, runtime, window, score_thr],
            [drawn, found, features, bias],
            api_visibility='private',
        )
    return page.queue(default_concurrency_limit=1, max_size=_WAITING)


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
        css=_CSS,
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
