"""Test a checkpoint: mmseg's and mmdet's configs alike."""

import sys
from copy import deepcopy
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmengine
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from tools import cli
from tools.config_checks import UserError, check_data

# What the closing table shows, by the name that the metric gives it.
COLUMNS = {
    'mmseg': [('', {'mIoU': 'mIoU', 'mAcc': 'mAcc', 'aAcc': 'aAcc'})],
    'mmdet': [(kind, {'AP': f'coco/{kind}_mAP', 'AP50': f'coco/{kind}_mAP_50',
                      'AP75': f'coco/{kind}_mAP_75'}) for kind in ('bbox', 'segm')],
}


def parse_args():
    parser = cli.make_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='a path, a URL, or a work dir: its newest checkpoint')
    parser.add_argument('--show-dir', help='draw truth and prediction of every picture into this '
                        'folder')
    parser.add_argument('--out', help='mmdet: a .pkl file for the predictions; mmseg: a folder for '
                        'the predicted label maps')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument('--baseline', action='store_true', help='also show what predicting the '
                        'most frequent class everywhere gets on the same pictures')
    return parser.parse_args()


def apply_options(cfg: Config, args) -> None:
    """Write the command line's wishes into the config."""
    args.checkpoint = cli.use_checkpoint(cfg, args.checkpoint)
    if args.show_dir:
        show_pictures(cfg, args.show_dir)
    if args.tta:
        use_tta(cfg)
    if args.out:
        save_predictions(cfg, args.out)


def show_pictures(cfg: Config, folder: str) -> None:
    """Turn on the toolbox's own visualization hook."""
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise UserError("--show-dir: the config lacks default_hooks['visualization']")
    hook.draw, folder = True, str(Path(folder).resolve())
    if cfg.default_scope == 'mmdet':
        hook.test_out_dir = folder
    else:
        hook.interval = 1  # mmseg's hook draws every 50th picture otherwise
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
            import tools.tta  # noqa: F401  registers the class
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
    else:
        for evaluator in evaluators(cfg):
            if evaluator.type == 'IoUMetric':
                evaluator.output_dir = out


def format_table(rows: dict[str, dict], scope: str) -> str:
    """A short table of metrics, one row a predictor and kind."""
    names = list(COLUMNS[scope][0][1])
    width = max(len(name) for name in rows) + 6
    lines = [' ' * width + ''.join(f'{name:>8}' for name in names)]
    for row, metrics in rows.items():
        for kind, keys in COLUMNS[scope]:
            if any(key in metrics for key in keys.values()):
                values = (metrics.get(key) for key in keys.values())
                cells = ''.join(f'{"-" if v is None else format(v, ".3f"):>8}' for v in values)
                lines.append(f'{f"{row} {kind}".strip():<{width}}{cells}')
    return '\n'.join(lines)


def write_results(path: Path, args, rows: dict[str, dict]) -> None:
    """Write the metrics as JSON, with what they are the metrics of."""
    mmengine.dump(dict(config=args.config, checkpoint=args.checkpoint, tta=args.tta,
                       date=datetime.now().isoformat(timespec='seconds'), results=rows),
                  path, indent=2)


def main():
    args = parse_args()
    cfg = cli.load_config(args)
    plain_cfg = deepcopy(cfg)
    apply_options(cfg, args)
    check_data(cfg, 'test_dataloader')
    metrics = cli.execute(cfg, Runner.test, whole_checkpoint=True)
    if not is_main_process():
        return
    path = Path(cfg.work_dir) / 'test_results.json'
    rows = {'model': metrics}
    write_results(path, args, rows)  # At once: the model's scores may have taken hours.
    if args.baseline:
        from tools.analysis_tools.majority_baseline import majority_baseline
        rows['most frequent class'] = majority_baseline(plain_cfg)
        write_results(path, args, rows)
    print(f'\n{args.checkpoint}\n{format_table(rows, cfg.default_scope)}\n-> {path}')


if __name__ == '__main__':
    cli.run(main)
