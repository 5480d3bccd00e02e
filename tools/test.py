"""Test a checkpoint with a config of mmseg, mmdet or mmpretrain."""

import os
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from tools.engine.config_checks import check_data
from tools.engine.cost import CostHook
from tools.engine.exported import use_exported
from tools.engine.launching import end_communication
from tools.engine.results import results_table, write_results
from tools.engine.runner import (
    bare_model,
    execute,
    load_config,
    set_window_size,
    test_evaluators,
    use_checkpoint,
)
from tools.utils import cli
from tools.utils.errors import UserError
from tools.utils.runtimes import RUNTIMES, load_exported


def parse_args():
    parser = cli.make_parser(__doc__)
    parser.add_argument('checkpoint', help='a path, a URL, or a work dir: its newest checkpoint')
    parser.add_argument(
        '--show-dir', help='draw ground truth and prediction of every image into this folder'
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
        help='test at each of these attention windows instead of the one in the config: a side '
        'in tokens as 16, HEIGHTxWIDTH, or one per stage as 16,16,16,8',
    )
    parser.add_argument(
        '--runtime',
        nargs=2,
        metavar=('RUNTIME', 'FILE'),
        help='also test an exported file of the model, or of its backbone (tools/deployment/'
        f'export.py), with {" or ".join(RUNTIMES)}',
    )
    parser.add_argument(
        '--baseline',
        action='store_true',
        help='also report the scores of predicting the most frequent class everywhere',
    )
    args = parser.parse_args()
    if args.runtime and args.runtime[0] not in RUNTIMES:
        parser.error(f"--runtime: got '{args.runtime[0]}', allowed: {' or '.join(RUNTIMES)}")
    if args.runtime and args.window_size:
        parser.error('--runtime: the window of a file is that of its export, drop --window-size')
    return args


def apply_options(cfg: Config, args) -> None:
    """Apply the command-line options to the config.

    Raises:
        UserError: If the config does not allow an option.
    """
    if args.baseline and cfg.default_scope == 'mmpretrain':
        raise UserError('--baseline: got a config of mmpretrain, allowed: of mmseg or mmdet')
    args.checkpoint = use_checkpoint(cfg, args.checkpoint)
    for option in ('out', 'show_dir'):
        tests = 2 if args.runtime else len(args.window_size)
        if getattr(args, option) and tests > 1:
            raise UserError(
                f'--{option.replace("_", "-")}: got {tests} tests (--window-size or --runtime), '
                'whose predictions would overwrite each other; allowed: one'
            )
    if args.show_dir:
        show_images(cfg, args.show_dir)
    if args.tta:
        use_tta(cfg)
    if args.out:
        save_predictions(cfg, args.out)


def show_images(cfg: Config, folder: str) -> None:
    """Make the toolbox's own hook draw every image of the test into a folder."""
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


def use_tta(cfg: Config) -> None:
    """Replace model and pipeline by those for test-time augmentation."""
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing:
        raise UserError(f'--tta: the config lacks {" and ".join(missing)}')
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if cfg.default_scope == 'mmdet':
        print('--tta: mmdet can merge only boxes, so mask AP is left out', file=sys.stderr)
        if cfg.model.type == 'DetTTAModel':
            import tools.engine.tta  # noqa: F401  registers BoxTTAModel

            cfg.model.type = 'BoxTTAModel'
        for evaluator in test_evaluators(cfg):
            if evaluator.type == 'CocoMetric':
                evaluator.metric = ['bbox']


def save_predictions(cfg: Config, out: str) -> None:
    """Have the toolbox write the predictions to a file or folder, in its own format."""
    if cfg.default_scope == 'mmseg':
        for evaluator in test_evaluators(cfg):
            if evaluator.type == 'IoUMetric':
                evaluator.output_dir = out
        return
    if not out.endswith(('.pkl', '.pickle')):
        raise UserError(f"--out: got '{out}', allowed with {cfg.default_scope}: a .pkl file")
    folder = next(folder for folder in Path(out).absolute().parents if folder.exists())
    if not os.access(folder, os.W_OK):  # The toolbox would fail after the test.
        raise UserError(f"--out: got '{out}', but nothing can be written to '{folder}'")
    dump = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
    cfg.test_evaluator = [*test_evaluators(cfg), dict(type=dump, out_file_path=out)]


def exported_rows(runner: Runner, runtime: str, file: str) -> Iterator[tuple[str, dict]]:
    """Test the model in torch, then with an exported file of it or of its backbone.

    Yields:
        The name and the metrics of a row of the results.
    """
    exported, hook = load_exported(Path(file), runtime), CostHook()
    runner.register_hook(hook, priority='LOWEST')
    yield 'torch', {**runner.test(), **hook.cost}
    use_exported(bare_model(runner.model), exported)
    yield runtime, {**runner.test(), **hook.cost}


def test_rows(runner: Runner, windows: list[cli.Window]) -> Iterator[tuple[str, dict]]:
    """Test the model as it is, or at each of some windows.

    Yields:
        The name and the metrics of a row of the results.

    Raises:
        UserError: If there are windows, and the model has no SwinTransformerV2.
    """
    if not windows:
        yield 'model', runner.test()
        return
    hook = CostHook()
    runner.register_hook(hook, priority='LOWEST')
    for window in {window.text: window for window in windows}.values():
        set_window_size(runner.model, window.size)
        metrics = runner.test()
        yield f'window {window.text}', {**metrics, **hook.cost}


def main():
    args = parse_args()
    cfg = load_config(args)
    original_cfg = deepcopy(cfg)  # apply_options may wrap model and pipeline.
    apply_options(cfg, args)
    check_data(cfg, 'test_dataloader')
    path, rows = Path(cfg.work_dir) / 'test_results.json', {}

    def work(runner: Runner) -> None:
        tests = (
            exported_rows(runner, *args.runtime)
            if args.runtime
            else test_rows(runner, args.window_size)
        )
        for name, metrics in tests:
            rows[name] = metrics
            if is_main_process():  # After each, because a test may take hours.
                write_results(path, args, rows)

    execute(cfg, work, strict=True)
    main_process = is_main_process()
    end_communication()
    if not main_process:
        return
    if args.baseline:
        from tools.engine.majority_baseline import majority_baseline

        rows['most frequent class'] = majority_baseline(original_cfg)
        write_results(path, args, rows)
    print(f'\n{args.checkpoint}\n{results_table(rows, cfg.default_scope)}\n-> {path}')


if __name__ == '__main__':
    cli.run(main)
