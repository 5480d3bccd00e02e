"""Measure how a checkpoint performs at other windows, without fine-tuning, on images of your own.

Images grow with the window: at window w those of the w8 releases have 32 w pixels a side, so that
stage 4 is one window, as in training. With labels the tool reports the top-1 and top-5 accuracy of
the checkpoint's own classifier; in any case, how often it predicts the same class as at its
pretrained window (agreement), and how far the features move (drift). Beside the model's log-spaced
position bias it measures two others that are made from it: a network on linear coordinates, and an
interpolated table.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mmengine
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_backbone.checkpoints import describe_arch
from swinv2_backbone.checkpoints.files import atomic_file
from tools.utils import cli
from tools.utils.alternative_biases import interpolated_table, linear_bias, replaced_bias
from tools.utils.checkpoint_model import add_arguments, load_model
from tools.utils.classifier import Classifier
from tools.utils.errors import UserError
from tools.utils.images import find_images, read_labels
from tools.utils.table import format_number, format_table

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
        help='sides of the windows in tokens',
    )
    parser.add_argument(
        '--images', type=Path, required=True, help='a folder of images, subfolders included'
    )
    parser.add_argument(
        '--labels', type=Path, help="lines of PATH_IN_THE_FOLDER CLASS, as ImageNet's val.txt"
    )
    parser.add_argument('--biases', nargs='+', choices=list(BIASES), default=list(BIASES))
    parser.add_argument('--batch', type=cli.positive, default=8, help='images per batch')
    parser.add_argument('--device', type=cli.device, default='cpu', help='as torch names it')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/window_transfer.json'),
        help='the JSON file to write',
    )
    args = parser.parse_args()
    if args.out.is_dir():
        parser.error(f"--out: got '{args.out}', a folder; allowed: a file")
    return args


def measure(
    args: argparse.Namespace, classifier: Classifier, paths: list[Path], labels: list[int] | None
) -> Iterator[dict]:
    """The results of each bias and window, one after the other."""
    windows = list(dict.fromkeys(args.windows))
    bar = mmengine.ProgressBar(len(paths) * (1 + len(args.biases) * len(windows)), file=sys.stderr)
    reference = classifier.classify(paths, classifier.pretrained_window, args.batch, bar)
    for name in args.biases:
        with replaced_bias(classifier.model, BIASES[name]) if BIASES[name] else nullcontext():
            for window in windows:
                features, classes, seconds = classifier.classify(paths, window, args.batch, bar)
                yield dict(
                    bias=name,
                    window=window,
                    size=classifier.image_size(window),
                    **scores(features, classes, reference, labels),
                    seconds=seconds,
                )
    sys.stderr.write('\n')


def scores(features: Tensor, classes: Tensor, reference: tuple, labels: list[int] | None) -> dict:
    """Agreement, top-1 and top-5 in percent, and drift as a cosine distance."""
    row = dict(drift=(1 - F.cosine_similarity(features, reference[0])).mean().item())
    if classes.shape[1]:
        row['agreement'] = _percent(classes[:, 0] == reference[1][:, 0])
    if labels is not None:
        correct = classes == torch.tensor(labels)[:, None]
        row |= dict(top1=_percent(correct[:, 0]), top5=_percent(correct.any(1)))
    return row


def _percent(correct: Tensor) -> float:
    return 100 * correct.double().mean().item()


def table(rows: list[dict], with_paper: bool) -> str:
    """The results as text, with the paper's top-1 on ImageNet if `with_paper` is set."""
    header = ['bias', 'window', 'pixels', 'top-1', 'top-5', 'agreement', 'drift', 's/image']
    formats = dict(top1='.1f', top5='.1f', agreement='.1f', drift='.4f', seconds='.3f')
    lines = [
        [row['bias'], str(row['window']), str(row['size'])]
        + [format_number(row.get(key), spec) for key, spec in formats.items()]
        for row in rows
    ]
    if with_paper:
        header.insert(5, 'paper')
        for line, row in zip(lines, rows, strict=True):
            line.insert(5, format_number(PAPER[row['bias']].get(row['window']), '.1f'))
    return format_table([header, *lines])


def main() -> None:
    args = parse_args()
    model, converted = load_model(args)
    classifier = Classifier(model, converted.head, args.device)
    paths, labels = find_images(args.images), None
    if args.labels:
        if classifier.num_classes is None:
            raise UserError(f'--labels: {args.checkpoint} has no classifier')
        labels = read_labels(args.labels, args.images, paths, classifier.num_classes)
    # Whether the paper's numbers are of such a checkpoint.
    as_in_paper = (
        labels is not None
        and classifier.num_classes == 1000
        and classifier.pretrained_window == 8
        and describe_arch(converted.state) == "'tiny'"
    )
    rows = list(measure(args, classifier, paths, labels))
    print(table(rows, as_in_paper))
    print(
        f'{len(paths)} images; agreement (percent) and drift (cosine distance) are relative to the '
        f'predictions and features at window {classifier.pretrained_window}'
    )
    if as_in_paper:
        print(
            'paper: arXiv 2111.09883, table 1, SwinV2-T trained at window 8, ImageNet-1K top-1 '
            'without fine-tuning, where each bias is one that a model was trained with'
        )
    with atomic_file(args.out) as partial:
        content = dict(
            checkpoint=args.checkpoint,
            images=str(args.images),
            count=len(paths),
            labels=args.labels and str(args.labels),
            results=rows,
        )
        mmengine.dump(content, partial, file_format='json', indent=1)
    print(f'-> {args.out}')


if __name__ == '__main__':
    cli.run(main)
