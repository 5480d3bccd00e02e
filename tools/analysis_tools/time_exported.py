"""Time exported backbones beside torch: runtimes, precisions, files of one size and of all.

Each row has a process of its own, and in each round each runs once, one after the other, so that
what slows the machine down slows all of them. The order changes from round to round: what ran
before leaves its threads and data in the processor. The weights and the image are random. Prints a
table per window, in Markdown, under a header that says where and with what it ran.
"""

import argparse
import dataclasses
import random
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.benchmarking import machine, report
from tools.benchmarking.cases import Case
from tools.benchmarking.measurement import PAUSE, say
from tools.benchmarking.process import Worker, WorkerError
from tools.utils import cli
from tools.utils.runtimes import require
from tools.utils.table import markdown_table

_TORCH = {
    'fp32': 'torch, float32',
    'bf16': 'torch, bf16 autocast',
    'bf16_weights': 'torch, bf16 autocast, weights cast before',
}


def parse_args() -> argparse.Namespace:
    parser = cli.OneLineParser(description=__doc__)
    parser.add_argument('--window-size', nargs='+', type=cli.positive, default=[8, 16])
    parser.add_argument('--size', type=cli.positive, default=512, help='side of the image')
    parser.add_argument('--rounds', type=cli.positive, default=10)
    parser.add_argument('--threads', type=cli.positive, default=2)
    parser.add_argument('--arch', choices=['tiny', 'mini'], default='tiny')
    parser.add_argument(
        '--implementations',
        nargs='*',
        choices=['timm', 'transformers', 'ours_without_norms'],
        default=[],
        help='also the same backbone of these libraries, exported in the same way; they do not '
        'normalize the four maps: ours_without_norms is ours without that, too',
    )
    parser.add_argument('--no-int8', action='store_true', help='leave out int8, which needs nncf')
    parser.add_argument(
        '--implementations-folder',
        type=Path,
        default=Path(__file__).parents[2] / '.venv/implementations',
        help='where `make .venv/implementations` installs them',
    )
    return parser.parse_args()


class Table:
    """The rows of one window.

    Attributes:
        workers: For each row, by its name, the process that runs it.
        seconds: For each row, one number per round.
        left_out: Why an implementation was left out, by its name.
    """

    def __init__(self, args: argparse.Namespace, window: int, folder: Path):
        self.args, self.window, self.folder = args, window, folder
        self.workers: dict[str, Worker] = {}
        self.seconds: dict[str, list[float]] = {}
        self.left_out: dict[str, str] = {}

    def _case(self, dtype: str = 'fp32') -> dict:
        side = self.args.size
        return dataclasses.asdict(Case('infer', side, side, self.window, 1, dtype))

    def _start(self, implementation: str) -> Worker:
        return Worker(implementation, self.args.implementations_folder, self.args.threads)

    def add_torch(self) -> None:
        int8 = {'int8': 'torch, int8 (torchao, dynamic)'} if find_spec('torchao') else {}
        for dtype, name in {**_TORCH, **int8}.items():
            worker = self.workers[name] = self._start('ours')
            options = dict(arch=self.args.arch, drop_path=0.0, device='cpu', compile=False)
            options.update(implementation='ours', threads=self.args.threads)
            worker.request('build', case=self._case(dtype), **options)

    def add_exported(self, implementation: str, dynamic: bool) -> None:
        """Export a backbone in all precisions, and start what runs the files.

        Raises:
            WorkerError: If the implementation cannot be built or exported, or a file not be run.
        """
        kind = 'any size' if dynamic else 'one size'
        onnx = self.folder / f'{implementation}_{kind}.onnx'.replace(' ', '_')
        precisions = ['fp32', 'bf16']
        if implementation == 'ours' and not dynamic and not self.args.no_int8:
            precisions.append('int8')
        say(f'window {self.window}: exporting {implementation}, {kind}')
        exporter = self._start(implementation)
        try:
            files = exporter.request(
                'export',
                implementation=implementation,
                case=self._case(),
                arch=self.args.arch,
                path=str(onnx),
                dynamic=dynamic,
                precisions=precisions,
            )['files']
        finally:
            exporter.close()
        who = '' if implementation == 'ours' else f'{implementation}: '
        for runtime, precision, file in files:
            name = f'{who}{runtime}, {precision.replace("fp32", "float32")}, {kind}'
            worker = self.workers[name] = self._start('ours')
            worker.request('load', file=file, size=self.args.size, threads=self.args.threads)

    def measure(self) -> None:
        self.seconds = {name: [] for name in self.workers}
        order, generator = list(self.workers), random.Random(0)
        for index in range(-1, self.args.rounds):
            for name in order:
                time.sleep(PAUSE)
                seconds = self.workers[name].request('run')['seconds']
                if index >= 0:
                    self.seconds[name].append(seconds)
            generator.shuffle(order)
            say(f'window {self.window}: round {index + 1} of {self.args.rounds}')

    def rows(self) -> list[list[str]]:
        ours = next(iter(self.seconds.values()))
        cells = [['', 'median ms', 'min ms', 'x torch float32']]
        for name, times in self.seconds.items():
            ratio = median(a / b for a, b in zip(ours, times, strict=True))
            milliseconds = (f'{1e3 * each:.1f}' for each in (median(times), min(times)))
            cells.append([name, *milliseconds, f'{ratio:.2f}'])
        return cells

    def run(self) -> None:
        """Fill the table."""
        try:
            self.add_torch()
            self.add_exported('ours', dynamic=False)
            for name in self.args.implementations:
                try:
                    self.add_exported(name, dynamic=False)
                except WorkerError as error:
                    self.left_out[name] = str(error)
                    say(f'{name} is left out: {error}')
            self.add_exported('ours', dynamic=True)
            self.measure()
        finally:
            for worker in self.workers.values():
                worker.close()


def main() -> None:
    args = parse_args()
    require('onnx', 'onnxscript', 'onnxruntime', 'openvino', *['nncf'] * (not args.no_int8))
    print('# Exported backbones, SwinV2\n')
    described = machine.describe('cpu', args.threads, args.implementations_folder)
    print('\n'.join(report.header(described)), flush=True)
    for window in args.window_size:
        with tempfile.TemporaryDirectory() as folder:
            table = Table(args, window, Path(folder))
            table.run()
        print(f'\n## {args.size} x {args.size}, window {window}, batch 1\n')
        print(markdown_table(table.rows()), flush=True)
        for name, why in table.left_out.items():
            print(f'\n- {name} is left out: {why}')
    print('\nThe last column is the median of the ratios of each round.')


if __name__ == '__main__':
    cli.run(main)
