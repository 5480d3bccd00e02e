"""Draw the images that the training gets from a config's data, with their ground truth."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmengine.runner import set_random_seed
from mmengine.visualization import Visualizer

from tools.engine.config_checks import check_data
from tools.engine.runner import load_config
from tools.utils import cli
from tools.utils.errors import UserError


def parse_args():
    parser = cli.make_parser(__doc__)
    parser.add_argument('--out-dir', type=Path, required=True, help='folder of the images, .png')
    parser.add_argument('--num', type=cli.positive, default=20, help='number of images')
    parser.add_argument(
        '--data',
        choices=['train', 'val', 'test'],
        default='train',
        help='whose data and pipeline (default: those of the training)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of the random augmentation')
    return parser.parse_args()


def draw(visualizer: Visualizer, item: dict, path: Path) -> None:
    """Write an image as a pipeline made it, with its ground truth, drawn by the toolbox."""
    sample = item['data_samples']
    image = item['inputs'].permute(1, 2, 0).numpy().astype('uint8')[..., ::-1].copy()  # BGR to RGB
    instances = sample.get('gt_instances')
    if instances is not None:  # The visualizer takes no classes of boxes and masks.
        instances.bboxes = getattr(instances.bboxes, 'tensor', instances.bboxes)
        if 'masks' in instances:
            instances.masks = instances.masks.to_ndarray().astype(bool)
    visualizer.add_datasample(path.stem, image, sample, draw_pred=False, out_file=str(path))


def browse(dataset: BaseDataset, visualizer: Visualizer, num: int, folder: Path) -> None:
    """Write the first `num` images of a dataset as INDEX_NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    visualizer.dataset_meta = dataset.metainfo
    for index in range(min(num, len(dataset))):
        item = dataset[index]
        draw(
            visualizer, item, folder / f'{index:04}_{Path(item["data_samples"].img_path).stem}.png'
        )


def main():
    args = parse_args()
    cfg = load_config(args)
    if cfg.default_scope not in ('mmdet', 'mmseg'):
        raise UserError(
            f"config '{args.config}': default_scope: got '{cfg.default_scope}', "
            "allowed: 'mmdet' or 'mmseg'"
        )
    loader = f'{args.data}_dataloader'
    check_data(cfg, loader)
    init_default_scope(cfg.default_scope)
    set_random_seed(args.seed)
    browse(
        DATASETS.build(cfg[loader].dataset),
        VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None)),
        args.num,
        args.out_dir,
    )
    print(f'-> {args.out_dir}')


if __name__ == '__main__':
    cli.run(main)
