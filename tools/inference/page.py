"""The page that tools/app.py serves: its components, and the answers to what visitors ask."""

import argparse
import base64
import html
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2

from tools.inference.explorer import Explorer, Found, Shown
from tools.inference.listing import TORCH, Listed
from tools.inference.uploads import Refused, read_upload

if TYPE_CHECKING:
    import gradio as gr

CONFIGURED = "the config's"
# Files of visitors are deleted when they are this old, in seconds; all of them when the page ends.
_KEPT = 600
_WAITING = 20
_TITLE = 'SwinV2 as a backbone'
STYLE = """
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


class Inputs(NamedTuple):
    """What a visitor chooses; but for the task, the arguments of :meth:`Answers.answer`."""

    task: 'gr.Radio'
    image: 'gr.Image'
    checkpoint: 'gr.Dropdown'
    runtime: 'gr.Radio'
    window: 'gr.Dropdown'
    score_thr: 'gr.Slider'


def build_page(explorer: Explorer, args: argparse.Namespace) -> 'gr.Blocks':
    """The page, not yet served."""
    import gradio as gr

    answers = Answers(explorer, args)
    kept = dict(analytics_enabled=False, delete_cache=(60, _KEPT))
    with gr.Blocks(title=_TITLE, **kept) as page:
        gr.Markdown(
            f'# {_TITLE}\nChoose an image and a model; see the prediction, '
            'the feature maps and the position bias.'
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                inputs = _inputs(explorer.listed, list(answers.windows))
                run = gr.Button('Predict', variant='primary')
            with gr.Column(scale=2, min_width=300), gr.Tabs():
                outputs = _outputs()
        _follow_choices(inputs, explorer.listed)
        run.click(answers.answer, list(inputs[1:]), outputs, api_visibility='private')
    return page.queue(default_concurrency_limit=1, max_size=_WAITING)


def _names(listed: dict[str, Listed]) -> dict[str, list[str]]:
    """The names of the checkpoints, by task."""
    names: dict[str, list[str]] = {}
    for name, entry in listed.items():
        names.setdefault(entry.task, []).append(name)
    return names


def _inputs(listed: dict[str, Listed], windows: list[str]) -> Inputs:
    """Show what a visitor can choose, the first task and its first checkpoint chosen."""
    import gradio as gr

    names = _names(listed)
    task, *_ = names
    first = names[task][0]
    image = gr.Image(type='filepath', label='image', sources=['upload', 'clipboard'], height=300)
    # Gradio would have Pillow open it before it is checked. (Not a subclass: of those gradio writes
    # a .pyi file beside the source.)
    image.preprocess = lambda sent: getattr(sent, 'path', None)
    return Inputs(
        image=image,
        task=gr.Radio(list(names), value=task, label='task'),
        checkpoint=gr.Dropdown(names[task], value=first, label='checkpoint'),
        runtime=gr.Radio(list(listed[first].runtimes), value=TORCH, label='runtime'),
        window=gr.Dropdown(windows, value=CONFIGURED, label='attention window, in tokens'),
        score_thr=gr.Slider(
            0, 1, 0.3, step=0.05, label='smallest score', visible=task == 'detection'
        ),
    )


def _outputs() -> list:
    """Show the places of an answer: drawn prediction, classes, features, position bias."""
    import gradio as gr

    with gr.Tab('Prediction'):
        drawn = gr.Image(
            label='prediction', format='png', buttons=['fullscreen'], elem_classes='drawn'
        )
        found = gr.HTML()
    with gr.Tab('Features'):
        gr.Markdown(
            'The maps that the backbone returns, of the image scaled to at most 512 pixels a side: '
            'the first three principal components as red, green, blue.'
        )
        features = gr.HTML()
    with gr.Tab('Bias'):
        gr.Markdown(
            'The position bias of the first block of each stage: what each head adds to the logit '
            'of the center of a window with each of its tokens.'
        )
        bias = gr.HTML()
    return [drawn, found, features, bias]


def _follow_choices(inputs: Inputs, listed: dict[str, Listed]) -> None:
    """Offer what the chosen task, checkpoint and runtime allow."""
    import gradio as gr

    names = _names(listed)

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

    task, _, checkpoint, runtime, window, score_thr = inputs
    quick = dict(queue=False, show_progress='hidden', api_visibility='private')
    task.change(on_task, task, [checkpoint, runtime, window, score_thr], **quick)
    checkpoint.change(on_checkpoint, checkpoint, [runtime, window], **quick)
    runtime.change(on_runtime, runtime, window, **quick)
