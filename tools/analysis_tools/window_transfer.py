"""Run a checkpoint at other windows, on images in proportion, and see what becomes of it.

Images grow with the window: at window w those of the w8 releases have 32 w pixels a side, so that
stage 4 is one window, as in training. With labels: top-1 and top-5 accuracy of the checkpoint's own
classifier, without any fine-tuning. In any case: how often it predicts what it
predicts at its pretrained window, and how far its features move. Beside the log-spaced position
bias of the model stand two others, made from it: on linear coordinates, and as an interpolated
table.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mmengine
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.checkpoints import describe_arch
from swinv2_backbone.checkpoints.files import atomic_file
from tools.utils import cli
from tools.utils.checkpoint_model import add_arguments, load_model
from tools.utils.config_checks import UserError
from tools.utils.images import center_crop, find_images, normalized, open_image, read_labels
from tools.utils.other_biases import interpolated_table, linear_bias, replaced_bias

BIASES = {'log CPB': None, 'linear CPB': linear_bias, 'bicubic table': interpolated_table}
# Table 1 of arXiv 2111.09883: SwinV2-T, trained at window 8, on ImageNet-1K without fine-tuning.
# There each row is a model that was trained with that bias.
PAPER = {
    'log CPB': {8: 81.8, 12: 82.4, 16: 81.7, 20: 80.4, 24: 79.1},
    'linear CPB': {8: 81.7, 12: 82.0, 16: 81.2, 20: 79.8, 24: 77.6},
    'bicubic table': {8: 81.7, 12: 79.4, 16: 77.2, 20: 73.2, 24: 68.7},
}


def parse_args() -> argparse.Namespace:
    parser = cli.OneLineParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        '--windows',
        nargs='+',
        type=cli.positive,
        default=[8, 12, 16, 20, 24],
        help='sides in tokens',
    )
    parser.add_argument(
        '--images',
        type=Path,
        required=True,
        help='a folder of images; folders in it are looked into',
    )
    parser.add_argument(
        '--labels', type=Path, help="lines of PATH_IN_THE_FOLDER CLASS, as ImageNet's val.txt"
    )
    parser.add_argument('--biases', nargs='+', choices=list(BIASES), default=list(BIASES))
    parser.add_argument('--batch', type=cli.positive, default=8, help='images at a time')
    parser.add_argument('--device', default='cpu', help='as torch names it')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/window_transfer.json'),
        help='the JSON file to write',
    )
    return parser.parse_args()


class Classifier:
    """A backbone and, where the checkpoint has one, its classifier.

    Args:
        model: The backbone.
        head: ``head.weight`` and, in nearly all, ``head.bias``; or nothing.
        device: Where to run.
    """

    def __init__(self, model: SwinTransformerV2, head: dict[str, Tensor], device: str):
        self.model = model.to(device)
        self.device = device
        self.head = {key: value.to(device, torch.float32) for key, value in head.items()}
        if self.head and 'head.weight' not in self.head:
            raise UserError(f'the checkpoint has of a classifier {", ".join(self.head)} alone')

    @property
    def classes(self) -> int | None:
        """How many it knows."""
        return len(self.head['head.weight']) if self.head else None

    @property
    def home(self) -> int:
        """The window of the first stage, in tokens, that the checkpoint was trained with.

        Raises:
            UserError: If windows were no squares: nor were the images then.
        """
        windows = [stage.pretrained_window for stage in self.model.layers]
        if any(height != width for height, width in windows):
            raise UserError(f'trained at windows of {windows} tokens, allowed: squares')
        return windows[0][0]

    def side(self, window: int) -> int:
        """Side in pixels of the images for a window.

        In training stage 4 was one window: that of 8 in the w8 and w16 releases (256 pixels), of 6
        in those of w12 (192 pixels).
        """
        last = self.model.layers[-1].pretrained_window[0]
        trained = self.model.patch_size * 2 ** (len(self.model.layers) - 1) * last
        return round(trained * window / self.home)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean features ``(B, C)`` of the last stage and, best first, ``(B, 5)`` classes."""
        features = self.model(images.to(self.device))[-1].mean((2, 3)).float()
        if not self.head:
            return features.cpu(), features.new_zeros(len(features), 0).long().cpu()
        logits = F.linear(features, self.head['head.weight'], self.head.get('head.bias'))
        return features.cpu(), logits.topk(min(5, self.classes)).indices.cpu()


def run(
    classifier: Classifier, paths: list[Path], window: int, batch: int, bar: mmengine.ProgressBar
) -> tuple[Tensor, Tensor, float]:
    """Features and classes of all images at a window, and seconds an image."""
    found, seconds, side = [], 0.0, classifier.side(window)
    with classifier.model.window_size_as(window):
        for start in range(0, len(paths), batch):
            images = torch.stack(
                [
                    normalized(center_crop(open_image(path), side))
                    for path in paths[start : start + batch]
                ]
            )
            begin = time.perf_counter()
            found.append(classifier(images))
            seconds += time.perf_counter() - begin
            bar.update(len(images))
    features, classes = (torch.cat(part) for part in zip(*found, strict=True))
    return features, classes, seconds / len(paths)


def measure(
    args: argparse.Namespace, classifier: Classifier, paths: list[Path], labels: list[int] | None
) -> Iterator[dict]:
    """A row for each bias and window."""
    windows = list(dict.fromkeys(args.windows))
    bar = mmengine.ProgressBar(len(paths) * (1 + len(args.biases) * len(windows)), file=sys.stderr)
    reference = run(classifier, paths, classifier.home, args.batch, bar)
    for name in args.biases:
        with replaced_bias(classifier.model, BIASES[name]) if BIASES[name] else nullcontext():
            for window in windows:
                features, classes, seconds = run(classifier, paths, window, args.batch, bar)
                yield dict(
                    bias=name,
                    window=window,
                    size=classifier.side(window),
                    **scores(features, classes, reference, labels),
                    seconds=seconds,
                )
    sys.stderr.write('\n')


def scores(features: Tensor, classes: Tensor, reference: tuple, labels: list[int] | None) -> dict:
    """What is reported of features and classes: percentages, and a cosine distance."""
    row = dict(drift=(1 - F.cosine_similarity(features, reference[0])).mean().item())
    if classes.shape[1]:
        row['agreement'] = _percent(classes[:, 0] == reference[1][:, 0])
    if labels is not None:
        hit = classes == torch.tensor(labels)[:, None]
        row |= dict(top1=_percent(hit[:, 0]), top5=_percent(hit.any(1)))
    return row


def _percent(right: Tensor) -> float:
    return 100 * right.double().mean().item()


def table(rows: list[dict], with_paper: bool) -> str:
    """The rows as text; beside top-1, what the paper reports on ImageNet."""
    columns = {
        'bias': 14,
        'window': 8,
        'pixels': 8,
        'top-1': 8,
        'top-5': 8,
        'paper': 8,
        'agreement': 11,
        'drift': 9,
        's/image': 11,
    }
    if not with_paper:
        del columns['paper']
    lines = [''.join(f'{name:>{width}}' for name, width in columns.items())]
    for row in rows:
        cells = {
            'bias': row['bias'],
            'window': row['window'],
            'pixels': row['size'],
            'top-1': _cell(row.get('top1'), '.1f'),
            'top-5': _cell(row.get('top5'), '.1f'),
            'paper': _cell(PAPER[row['bias']].get(row['window']), '.1f'),
            'agreement': _cell(row.get('agreement'), '.1f'),
            'drift': _cell(row['drift'], '.4f'),
            's/image': _cell(row['seconds'], '.3f'),
        }
        lines.append(''.join(f'{cells[name]:>{width}}' for name, width in columns.items()))
    return '\n'.join(lines)


def _cell(value: float | None, form: str) -> str:
    return '-' if value is None else format(value, form)


def main() -> None:
    args = parse_args()
    if args.out.is_dir():
        raise UserError(f"--out: got '{args.out}', a folder; allowed: a file")
    model, converted = load_model(args)
    classifier = Classifier(model, converted.head, args.device)
    paths = find_images(args.images)
    labels = None
    if args.labels:
        if classifier.classes is None:
            raise UserError(f'--labels: {args.checkpoint} has no classifier')
        labels = read_labels(args.labels, args.images, paths, classifier.classes)
    # Whose numbers these are.
    as_in_paper = (
        labels is not None
        and classifier.classes == 1000
        and classifier.home == 8
        and describe_arch(converted.state) == "'tiny'"
    )
    rows = list(measure(args, classifier, paths, labels))
    print(table(rows, as_in_paper))
    print(
        f'{len(paths)} images; agreement and drift: with the predictions and features at '
        f'window {classifier.home}, in per cent and as cosine distance'
    )
    if as_in_paper:
        print(
            'paper: arXiv 2111.09883, table 1, SwinV2-T trained at window 8, ImageNet-1K top-1 '
            'without fine-tuning, where each bias is one that a model was trained with'
        )
    with atomic_file(args.out) as partial:
        mmengine.dump(
            dict(
                checkpoint=args.checkpoint,
                images=str(args.images),
                count=len(paths),
                labels=args.labels and str(args.labels),
                results=rows,
            ),
            partial,
            file_format='json',
            indent=1,
        )
    print(f'-> {args.out}')


if __name__ == '__main__':
    cli.run(main)
