"""Test a checkpoint: mmseg's, mmdet's and mmpretrain's configs alike."""

import sys
from collections.abc import Iterator
from copy import deepcopy
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmengine
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from swinv2_backbone import SwinTransformerV2
from tools.utils import cli
from tools.utils.config_checks import UserError, check_data
from tools.utils.cost import MEGABYTES, SECONDS, CostHook

# What the closing table shows, by the name that the metric gives it.
COLUMNS = {
    'mmseg': [('', {'mIoU': 'mIoU', 'mAcc': 'mAcc', 'aAcc': 'aAcc'})],
    'mmdet': [
        (
            kind,
            {
                'AP': f'coco/{kind}_mAP',
                'AP50': f'coco/{kind}_mAP_50',
                'AP75': f'coco/{kind}_mAP_75',
            },
        )
        for kind in ('bbox', 'segm')
    ],
    'mmpretrain': [('', {'top-1': 'accuracy/top1', 'top-5': 'accuracy/top5'})],
}


def parse_args():
    parser = cli.make_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='a path, a URL, or a work dir: its newest checkpoint')
    parser.add_argument(
        '--show-dir', help='draw truth and prediction of every image into this folder'
    )
    parser.add_argument(
        '--out',
        help='mmdet, mmpretrain: a .pkl file for the predictions; '
        'mmseg: a folder for the predicted label maps',
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument(
        '--window-size',
        nargs='+',
        type=cli.window,
        default=[],
        metavar='W',
        help='test at these attention windows, one after the other, whatever the '
        'model was trained with: a side in tokens as 16, HEIGHTxWIDTH, or one for '
        'each stage as 16,16,16,8',
    )
    parser.add_argument(
        '--baseline',
        action='store_true',
        help='also show what predicting the most frequent class everywhere gets on the same images',
    )
    return parser.parse_args()


def apply_options(cfg: Config, args) -> None:
    """Write the command line's wishes into the config."""
    if args.baseline and cfg.default_scope == 'mmpretrain':
        raise UserError('--baseline: allowed for segmentors and detectors')
    args.checkpoint = cli.use_checkpoint(cfg, args.checkpoint)
    for option in ('out', 'show_dir'):
        if getattr(args, option) and len(args.window_size) > 1:
            raise UserError(
                f'--{option.replace("_", "-")}: got {len(args.window_size)} window '
                'sizes, whose predictions would overwrite each other; allowed: one'
            )
    if args.show_dir:
        show_images(cfg, args.show_dir)
    if args.tta:
        use_tta(cfg)
    if args.out:
        save_predictions(cfg, args.out)


def show_images(cfg: Config, folder: str) -> None:
    """Turn on the toolbox's own visualization hook."""
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise UserError("--show-dir: the config lacks default_hooks['visualization']")
    folder = str(Path(folder).resolve())
    if cfg.default_scope == 'mmpretrain':
        hook.update(enable=True, interval=1, out_dir=folder)
        return
    hook.draw = True
    if cfg.default_scope == 'mmdet':
        hook.test_out_dir = folder
    else:
        hook.interval = 1  # mmseg's hook draws every 50th image otherwise
        cfg.visualizer.save_dir = folder


def evaluators(cfg: Config) -> list:
    """The config's test evaluators, of which it may have one or several."""
    return cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]


def use_tta(cfg: Config) -> None:
    """Wrap the model and the pipeline for test-time augmentation."""
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing:
        raise UserError(f'--tta: the config lacks {" and ".join(missing)}')
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if cfg.default_scope == 'mmdet':
        print('--tta: mmdet merges boxes alone, so mask AP is left out', file=sys.stderr)
        if cfg.model.type == 'DetTTAModel':
            import tools.utils.tta  # noqa: F401  registers the class

            cfg.model.type = 'BoxTTAModel'
        for evaluator in evaluators(cfg):
            if evaluator.type == 'CocoMetric':
                evaluator.metric = ['bbox']


def save_predictions(cfg: Config, out: str) -> None:
    """Have the predictions written out, in the way that the toolbox's users know."""
    if cfg.default_scope == 'mmdet':
        if not out.endswith(('.pkl', '.pickle')):
            raise UserError(f"--out: got '{out}', allowed for a detector: a .pkl file")
        cfg.test_evaluator = [*evaluators(cfg), dict(type='DumpDetResults', out_file_path=out)]
    elif cfg.default_scope == 'mmpretrain':
        if not out.endswith(('.pkl', '.pickle')):
            raise UserError(f"--out: got '{out}', allowed for a classifier: a .pkl file")
        cfg.test_evaluator = [*evaluators(cfg), dict(type='DumpResults', out_file_path=out)]
    else:
        for evaluator in evaluators(cfg):
            if evaluator.type == 'IoUMetric':
                evaluator.output_dir = out


def format_table(rows: dict[str, dict], scope: str) -> str:
    """A short table of metrics, one row a predictor and kind."""
    shown = [key for key in (SECONDS, MEGABYTES) if any(key in row for row in rows.values())]
    names = [*COLUMNS[scope][0][1], *shown]
    width = max(len(name) for name in rows) + 6
    lines = [' ' * width + ''.join(f'{name:>{_width(name)}}' for name in names)]
    for row, metrics in rows.items():
        for kind, keys in COLUMNS[scope]:
            if any(key in metrics for key in keys.values()):
                values = {
                    **{name: metrics.get(key) for name, key in keys.items()},
                    **{key: metrics.get(key) for key in shown},
                }
                cells = ''.join(
                    f'{"-" if v is None else format(v, ".3f"):>{_width(name)}}'
                    for name, v in values.items()
                )
                lines.append(f'{f"{row} {kind}".strip():<{width}}{cells}')
    return '\n'.join(lines)


def _width(column: str) -> int:
    return max(8, len(column) + 2)


def test_rows(runner: Runner, windows: list[cli.Window]) -> Iterator[tuple[str, dict]]:
    """Test the model as it is, or at each of some windows: rows of the closing table.

    Raises:
        UserError: If windows are asked for, and the model has no backbone of ours.
    """
    if not windows:
        yield 'model', runner.test()
        return
    backbones = [
        module for module in runner.model.modules() if isinstance(module, SwinTransformerV2)
    ]
    if not backbones:
        raise UserError("--window-size: the config's model has no SwinTransformerV2")
    hook = CostHook()
    runner.register_hook(hook, priority='LOWEST')
    for window in {window.text: window for window in windows}.values():
        for backbone in backbones:
            backbone.set_window_size(window.size)
        metrics = runner.test()
        yield f'window {window.text}', {**metrics, **hook.cost}


def write_results(path: Path, args, rows: dict[str, dict]) -> None:
    """Write the metrics as JSON, with what they are the metrics of."""
    mmengine.dump(
        dict(
            config=args.config,
            checkpoint=args.checkpoint,
            tta=args.tta,
            date=datetime.now().isoformat(timespec='seconds'),
            results=rows,
        ),
        path,
        indent=2,
    )


def main():
    args = parse_args()
    cfg = cli.load_config(args)
    plain_cfg = deepcopy(cfg)
    apply_options(cfg, args)
    check_data(cfg, 'test_dataloader')
    path, rows = Path(cfg.work_dir) / 'test_results.json', {}

    def work(runner: Runner) -> None:
        for name, metrics in test_rows(runner, args.window_size):
            rows[name] = metrics
            if is_main_process():  # At once: scores may have taken hours.
                write_results(path, args, rows)

    cli.execute(cfg, work, whole_checkpoint=True)
    if not is_main_process():
        return
    if args.baseline:
        from tools.utils.majority_baseline import majority_baseline

        rows['most frequent class'] = majority_baseline(plain_cfg)
        write_results(path, args, rows)
    print(f'\n{args.checkpoint}\n{format_table(rows, cfg.default_scope)}\n-> {path}')


if __name__ == '__main__':
    cli.run(main)
