"""Train a segmentor with SwinV2, and with other backbones in its place, and compare their scores.

Each training, a backbone with a recipe and a seed, is a run of tools/train.py in a folder of its
own. If interrupted, run the command again: it resumes. Writes results.json and results.md.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from mmengine.config import Config

from swinv2_backbone.checkpoints.files import atomic_file
from tools.benchmarking.machine import describe
from tools.benchmarking.measurement import say
from tools.benchmarking.report import header
from tools.engine.runner import load_config
from tools.utils import cli
from tools.utils.curves import Curve, read_scalars
from tools.utils.errors import UserError
from tools.utils.table import markdown_table

ROOT = Path(__file__).resolve().parents[2]
METRIC = 'mIoU'
# Backbones of mmseg with the settings of its own configs, their channels, and what of them does not
# decay beside norms and biases. None is that of the config.
BACKBONES = {
    'swinv2': None,
    'swin': (
        dict(
            type='SwinTransformer',
            embed_dims=96,
            depths=(2, 2, 6, 2),
            num_heads=(3, 6, 12, 24),
            window_size=7,
            drop_path_rate=0.1,
        ),
        (96, 192, 384, 768),
        dict(relative_position_bias_table=dict(decay_mult=0.0)),
    ),
    'resnet50': (
        dict(type='ResNetV1c', depth=50, norm_cfg=dict(type='BN', requires_grad=True)),
        (256, 512, 1024, 2048),
        dict(),
    ),
}


class Training(NamedTuple):
    """What one training differs in from the others."""

    backbone: str
    lr: float
    warm_up: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f'{self.backbone}_lr{self.lr:g}_warm_up{self.warm_up}_seed{self.seed}'


def parse_args() -> argparse.Namespace:
    parser = cli.make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add('--backbones', nargs='+', choices=BACKBONES, default=list(BACKBONES), metavar='NAME')
    add('--seeds', nargs='+', type=int, default=[0, 1, 2], metavar='SEED')
    add('--lr', nargs='+', type=float, default=[5e-4], help='peak learning rates to try')
    add('--warm-up', nargs='+', type=int, default=[50], help='iterations of warm-up to try')
    add('--iterations', type=cli.positive, default=300, help='of a training')
    add('--validate', type=cli.positive, default=75, help='after every so many iterations')
    args = parser.parse_args()
    for warm_up in args.warm_up:
        if not 0 <= warm_up < args.iterations:
            parser.error(f'--warm-up: got {warm_up}, allowed: 0 to less than --iterations')
    if args.iterations % args.validate:
        parser.error(f'--validate: got {args.validate}, allowed: a divisor of --iterations')
    return args


def use_backbone(cfg: Config, name: str) -> None:
    """Replace the backbone of a config of mmseg, with the channels that the heads get.

    Raises:
        UserError: If the model is of another toolbox.
    """
    if cfg.default_scope != 'mmseg':
        raise UserError(f"config: got one of {cfg.default_scope}, allowed: a segmentor's, of mmseg")
    if BACKBONES[name] is None:
        return
    backbone, channels, undecayed = BACKBONES[name]
    cfg.model.backbone = backbone
    for key in ('decode_head', 'auxiliary_head'):
        if head := cfg.model.get(key):
            several = not isinstance(head.in_index, int)
            head.in_channels = (
                [channels[i] for i in head.in_index] if several else channels[head.in_index]
            )
    cfg.optim_wrapper.paramwise_cfg.custom_keys = undecayed


def use_recipe(cfg: Config, training: Training, iterations: int, validate: int) -> None:
    """Linear warm-up to the learning rate, then linear decay to 0; validations on the way."""
    cfg.optim_wrapper.optimizer.lr = training.lr
    begin = training.warm_up
    warm_up = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=begin)
    decay = dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=begin, end=iterations)
    cfg.param_scheduler = [warm_up, decay] if begin else [decay]
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=validate)
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', by_epoch=False, interval=validate, max_keep_ckpts=1
    )


def scores(folder: Path) -> Curve:
    """The score after each validation of a training, as far as it went."""
    if not list(folder.glob('*/vis_data/scalars.json')):
        return []
    return read_scalars(folder).curve(METRIC)


def train(training: Training, args: argparse.Namespace, folder: Path) -> Curve:
    """Train, or what is left of it, and return the scores.

    Raises:
        UserError: If the training fails; its last line is shown.
    """
    found = scores(folder)
    if found and found[-1][0] == args.iterations:
        return found
    cfg = load_config(args)
    use_backbone(cfg, training.backbone)
    use_recipe(cfg, training, args.iterations, args.validate)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / 'training.py'
    cfg.dump(config)
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(config), '--resume']
    command += ['--work-dir', str(folder), '--seed', str(training.seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    (folder / 'training.log').write_text(done.stdout)
    if done.returncode:
        raise UserError(f'{training.name}: {(done.stdout.strip().splitlines() or ["failed"])[-1]}')
    for checkpoint in folder.glob('*.pth'):
        checkpoint.unlink()  # 400 MB each, and only the scores are asked for.
    return scores(folder)


def summary(results: dict[Training, Curve]) -> list[list[str]]:
    """Rows of a table, the head first: mean and standard deviation over the seeds by iteration."""
    iterations = [iteration for iteration, _ in next(iter(results.values()))]
    rows = [['backbone', 'learning rate', 'warm-up', 'seeds', *(f'{i}' for i in iterations)]]
    for key, group in itertools.groupby(results, lambda training: training[:3]):
        curves = [results[training] for training in group]
        columns = zip(*([value for _, value in curve] for curve in curves), strict=True)
        cells = [_mean_and_spread(values) for values in columns]
        rows.append([key[0], f'{key[1]:g}', str(key[2]), str(len(curves)), *cells])
    return rows


def _mean_and_spread(values: tuple[float, ...]) -> str:
    mean = f'{statistics.mean(values):.1f}'
    return mean if len(values) == 1 else f'{mean} ± {statistics.stdev(values):.1f}'


def write(out: Path, config: str, results: dict[Training, Curve]) -> None:
    """Write what there is of results.json and results.md."""
    content = [dict(**training._asdict(), **{METRIC: curve}) for training, curve in results.items()]
    lines = [
        f'# {METRIC} of {Path(config).stem} by iteration, with its backbone and with others',
        '',
        *header(describe('cpu', torch.get_num_threads(), ROOT / '.venv/implementations')),
        '',
        markdown_table(summary(results)),
    ]
    texts = {'results.json': json.dumps(content, indent=1), 'results.md': '\n'.join(lines)}
    for name, text in texts.items():
        with atomic_file(out / name) as partial:
            Path(partial).write_text(text + '\n')


def main() -> None:
    args = parse_args()
    load_config(args)  # A mistake is to show before the first training.
    out = Path(args.work_dir or f'work_dirs/compare_backbones/{Path(args.config).stem}')
    schedule = f'{args.iterations}_iterations_by_{args.validate}'
    grid = itertools.product(args.backbones, args.lr, args.warm_up, args.seeds)
    results: dict[Training, Curve] = {}
    for training in itertools.starmap(Training, grid):
        started = time.perf_counter()
        results[training] = train(training, args, out / schedule / training.name)
        last = results[training][-1][1]
        say(f'{training.name}: {last:.2f} {METRIC} ({time.perf_counter() - started:.0f} s)')
        write(out, args.config, results)
    print(markdown_table(summary(results)))
    print(f'-> {out}/results.md')


if __name__ == '__main__':
    cli.run(main)
