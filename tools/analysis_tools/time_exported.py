"""Time the exported backbone beside torch's: runtimes, precisions, static and dynamic files.

Each candidate has a process of its own, and in each round each runs once, one after the other, so
that what slows the machine down slows all of them. The weights are random.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch

from swinv2_backbone import SwinTransformerV2
from tools.utils import cli
from tools.utils.export import write, write_openvino
from tools.utils.runtimes import RUNTIMES, load_exported, require
from tools.utils.table import format_table

OUTPUTS = [f'map{i}' for i in range(4)]


def parse_args() -> argparse.Namespace:
    parser = cli.OneLineParser(description=__doc__)
    parser.add_argument('--window-size', nargs='+', type=cli.positive, default=[8, 16])
    parser.add_argument('--size', type=cli.positive, default=512, help='side of the image')
    parser.add_argument('--rounds', type=cli.positive, default=10)
    parser.add_argument('--threads', type=cli.positive, default=2)
    parser.add_argument('--arch', default='tiny')
    parser.add_argument('--candidate', nargs=2, help=argparse.SUPPRESS)  # Of a worker process.
    return parser.parse_args()


def build(args: argparse.Namespace, window: int) -> SwinTransformerV2:
    torch.manual_seed(0)
    model = SwinTransformerV2(args.arch, window_size=window, pretrained_window_sizes=8)
    return model.eval()


def export_all(args: argparse.Namespace, window: int, folder: Path) -> list[tuple[str, str, str]]:
    """Write all files of a window.

    Returns:
        For each candidate: its name in the table, the runtime, and the file ('' for torch).
    """
    candidates = [('torch, float32', 'torch', ''), ('torch, bf16 autocast', 'autocast', '')]
    model, image = build(args, window), torch.zeros(1, 3, args.size, args.size)
    for kind in ('static', 'dynamic'):
        onnx = folder / f'{kind}{window}.onnx'
        write(deepcopy(model), image, OUTPUTS, onnx, dynamic=kind == 'dynamic')
        candidates.append((f'onnxruntime, float32, {kind}', 'onnxruntime', str(onnx)))
        for precision, name in (('fp32', 'float32'), ('bf16', 'bf16')):
            file = folder / f'{kind}{window}_{precision}.xml'
            write_openvino(onnx, file, precision)
            candidates.append((f'OpenVINO, {name}, {kind}', 'openvino', str(file)))
    return candidates


def serve(args: argparse.Namespace) -> None:
    """A worker process: for each line on standard input, run once and answer the seconds."""
    runtime, file = args.candidate
    torch.set_num_threads(args.threads)
    image = torch.randn(1, 3, args.size, args.size)
    exported = runtime in RUNTIMES
    run = load_exported(Path(file), runtime) if exported else build(args, args.window_size[0])
    for _ in range(2):
        _timed(run, image, runtime)
    print('ready', flush=True)
    for _ in sys.stdin:
        print(_timed(run, image, runtime), flush=True)


def _timed(run: object, image: torch.Tensor, runtime: str) -> float:
    started = time.perf_counter()
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16, runtime == 'autocast'):
        run(image)
    return time.perf_counter() - started


def measure(args: argparse.Namespace, window: int, candidates: list) -> dict[str, list[float]]:
    """Seconds of each round, by the name of the candidate."""
    workers = {}
    try:
        for name, *candidate in candidates:
            options = {'window-size': window, 'size': args.size, 'threads': args.threads}
            command = [f'--{key}={value}' for key, value in options.items()]
            command += ['--arch', args.arch, '--candidate', *candidate]
            workers[name] = subprocess.Popen(
                [sys.executable, __file__, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            while workers[name].stdout.readline() not in ('ready\n', ''):
                pass  # What is logged meanwhile.
        times = {name: [] for name in workers}
        for _ in range(args.rounds):
            for name, worker in workers.items():
                print('run', file=worker.stdin, flush=True)
                times[name].append(float(worker.stdout.readline()))
        return times
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()


def main() -> None:
    args = parse_args()
    if args.candidate:
        serve(args)
        return
    require('onnx', 'onnxscript', 'onnxruntime', 'openvino')
    for window in args.window_size:
        with tempfile.TemporaryDirectory() as folder:
            times = measure(args, window, export_all(args, window, Path(folder)))
        first = median(next(iter(times.values())))
        rows = [
            [name, f'{median(t) * 1e3:.1f}', f'{min(t) * 1e3:.1f}', f'{first / median(t):.2f}x']
            for name, t in times.items()
        ]
        title = f'{args.size}, window {window}'
        print(format_table([[title, 'median ms', 'min ms', 'of torch'], *rows]), end='\n\n')


if __name__ == '__main__':
    cli.run(main)
