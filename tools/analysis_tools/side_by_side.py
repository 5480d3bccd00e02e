"""Draw images of the test data beside their ground truth and the prediction."""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import torch
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer

from tools.engine.config_checks import check_data
from tools.engine.runner import execute, load_config, use_checkpoint
from tools.utils import cli

_CAPTION_HEIGHT = 22


def parse_args():
    parser = cli.make_parser(__doc__)
    parser.add_argument('checkpoint', help='a path, a URL, or a work dir: its newest checkpoint')
    parser.add_argument(
        '--out', type=cli.file_type('.png'), required=True, help='the image to write, a .png file'
    )
    parser.add_argument('--num', type=cli.positive, default=4, help='number of images, one per row')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.5,
        help='smallest score of the detections that are drawn',
    )
    parser.add_argument('--side', type=cli.positive, default=320, help='height of a row in pixels')
    return parser.parse_args()


def captioned(image: np.ndarray, caption: str, side: int) -> np.ndarray:
    """An RGB image scaled to a height in pixels, with a line of text above it."""
    height, width = image.shape[:2]
    method = cv2.INTER_AREA if side < height else cv2.INTER_NEAREST
    image = cv2.resize(image, (round(width * side / height), side), interpolation=method)
    bar = np.full((_CAPTION_HEIGHT, image.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, caption, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack((bar, image))


def enlarge(instances: InstanceData, factor: int) -> None:
    """Scale the boxes and masks of mmdet's instances by an integer factor, in place."""
    instances.bboxes = instances.bboxes * factor
    masks = instances.masks
    masks = masks.cpu().numpy() if isinstance(masks, torch.Tensor) else masks.to_ndarray()
    instances.masks = masks.astype(bool).repeat(factor, 1).repeat(factor, 2)


def draw_row(visualizer: Visualizer, sample, side: int, score_thr: float) -> np.ndarray:
    """Image, ground truth and prediction of a data sample, drawn by the toolbox's visualizer."""
    image = cv2.cvtColor(cv2.imread(sample.img_path), cv2.COLOR_BGR2RGB)
    detection = 'pred_instances' in sample
    if detection:
        # The visualizer's text has a fixed size, and would cover the objects of a small image.
        factor = math.ceil(side / image.shape[0])
        image = image.repeat(factor, 0).repeat(factor, 1)
        for instances in (sample.gt_instances, sample.pred_instances):
            enlarge(instances, factor)
    options = dict(pred_score_thr=score_thr) if detection else dict(with_labels=False)
    panels = [captioned(image, 'image', side)]
    for caption, gt in (('ground truth', True), ('prediction', False)):
        visualizer.add_datasample(
            caption, image, sample, draw_gt=gt, draw_pred=not gt, show=False, **options
        )
        panels.append(captioned(visualizer.get_image(), caption, side))
    return np.hstack(panels)


@torch.no_grad()
def draw(runner: Runner, num: int, side: int, score_thr: float) -> np.ndarray:
    """The rows of the first `num` images of the test data, as one RGB image."""
    dataset = runner.test_dataloader.dataset
    runner.load_or_resume()
    runner.model.eval()
    runner.visualizer.dataset_meta = dataset.metainfo
    rows = []
    for index in range(min(num, len(dataset))):
        data = runner.test_dataloader.collate_fn([dataset[index]])
        rows.append(
            draw_row(runner.visualizer, runner.model.test_step(data)[0].cpu(), side, score_thr)
        )
    width = max(row.shape[1] for row in rows)
    return np.vstack(
        [
            np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=255)
            for row in rows
        ]
    )


def main():
    args = parse_args()
    cfg = load_config(args)
    use_checkpoint(cfg, args.checkpoint)
    check_data(cfg, 'test_dataloader')
    cfg.log_level = 'WARNING'
    image = execute(
        cfg, lambda runner: draw(runner, args.num, args.side, args.score_thr), strict=True
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(args.out), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    print(f'-> {args.out}')


if __name__ == '__main__':
    cli.run(main)
