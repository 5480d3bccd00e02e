"""The process of one implementation: reads requests, and answers, one line of JSON each.

Requests are ``{"do": "build", "implementation": ..., "case": {...}, "arch": ..., "drop_path": ...,
"device": ..., "compile": ..., "threads": ...}`` (further keys go to our constructor), then any
number of requests of the other public methods of `Session`, as ``{"do": "run"}``. A failure is
answered with ``{"error": reason}``. The process ends when its standard input does.
"""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TextIO

import torch

from tools.benchmarking.cases import ARCHITECTURES, Case
from tools.benchmarking.device import (
    capture,
    ceilings,
    profile_table,
    step_seconds,
    without_synchronizing,
)
from tools.benchmarking.gemm import Replay, record
from tools.benchmarking.networks import build_network
from tools.benchmarking.steps import NetworkStep, check_maps, peak_memory, relative_error, timed
from tools.utils.memory import PeakMemory, trim


class Session:
    """An implementation and its case; each public method is a request."""

    def build(
        self,
        implementation: str,
        case: dict,
        arch: str,
        drop_path: float,
        device: str,
        compile: bool | str,
        threads: int,
        **more: object,
    ) -> dict:
        """Build the network of a case, do a first step and check its maps.

        `compile` may be the name of a backend of torch.compile, instead of its default.
        """
        self.step = self.replay = None  # The memory of the case before.
        torch.set_num_threads(threads)
        self.device = device
        case = Case(**case)
        if implementation == 'gemm':
            return self._build_limit(case, arch, drop_path)
        network = build_network(implementation, case, arch, drop_path, **more).to(device)
        if compile:
            network = torch.compile(network, backend='inductor' if compile is True else compile)
        self.step = NetworkStep(network, case, device)
        check_maps(self.step(), case.map_shapes(ARCHITECTURES[arch]['embed_dims']))
        return {}

    def export(
        self,
        implementation: str,
        case: dict,
        arch: str,
        path: str,
        dynamic: bool,
        precisions: list[str],
    ) -> dict:
        """Export the network of a case, as ONNX to `path` and for OpenVINO beside it.

        Returns:
            ``files``: runtime, precision and path of each file.
        """
        from tools.utils.export import write, write_openvino
        from tools.utils.onnx_operators import BASIC_OPSET

        case = Case(**case)
        network = build_network(implementation, case, arch, 0.0)
        # A file of int8 is calibrated with noise: for its speed alone.
        images = [torch.randn(1, 3, case.height, case.width) for _ in range(4)]
        outputs, onnx = [f'map{i}' for i in range(4)], Path(path)
        write(network, images[0], outputs, onnx, dynamic)
        files = [('onnxruntime', 'fp32', path)]
        source = onnx.with_name(f'{onnx.stem}_for_openvino.onnx')
        write(network, images[0], outputs, source, dynamic, opset=BASIC_OPSET)
        for precision in precisions:
            file = onnx.with_name(f'{onnx.stem}_{precision}.xml')
            write_openvino(source, file, precision, images)
            files.append(('OpenVINO', precision, str(file)))
        return {'files': files}

    def load(self, file: str, size: int, threads: int) -> dict:
        """Read an exported network, whose step is a forward."""
        from tools.utils.runtimes import load_exported

        torch.set_num_threads(threads)
        self.device, run = 'cpu', load_exported(Path(file))
        self.step = partial(run, torch.randn(1, 3, size, size))
        return {}

    def _build_limit(self, case: Case, arch: str, drop_path: float) -> dict:
        network = build_network('ours_reference', case, arch, drop_path).to(self.device)
        products, multiply_adds = record(NetworkStep(network, case, self.device))
        self.step = Replay(products, self.device)
        return {
            'multiply_adds': multiply_adds,
            'recorded': sum(product.multiply_adds for product in products),
        }

    def run(self) -> dict:
        """Seconds of one step."""
        return {'seconds': timed(self.step, self.device)}

    def memory(self) -> dict:
        """Bytes that a step takes at its peak; for the limit, the size of its buffers."""
        if isinstance(self.step, Replay):
            return {'bytes': self.step.bytes, 'how': 'buffers'}
        count, how = peak_memory(self.step, self.device)
        return {'bytes': count, 'how': how}

    def capture(self) -> dict:
        """Capture the step in a CUDA graph; bytes that this takes at its peak.

        In eval mode the maps of a replay must be those of the step itself, up to rounding in the
        dtype of autocast; a graph that reads memory which was freed is off by more.
        """
        self.step.clear()
        memory = PeakMemory(self.device)
        self.replay = capture(self.step, self.device, self.step.clear)
        maps = self.replay()
        count, how = memory.taken()
        if not self.step.train:
            error = relative_error(maps, self.step())
            if not error <= 16 * torch.finfo(self.step.dtype).eps:
                raise ValueError(f'the maps of the CUDA graph are off by {error:.1e}')
        return {'bytes': count, 'how': how}

    def measure(self, rounds: int, graph: bool) -> dict:
        """Seconds of each of a number of steps, or of replays of the graph, after one more."""
        step = self.replay if graph else self.step
        return {'seconds': step_seconds(step, self.device, 1 + rounds)[1:]}

    def check_synchronization(self) -> dict:
        """Fail if the host waits for the device in a step."""
        with without_synchronizing(self.device):
            self.step()
        return {}

    def profile(self) -> dict:
        """A table of what a step spends its time on."""
        return {'table': profile_table(self.step, self.device)}

    def ceilings(self, side: int, megabytes: int) -> dict:
        """Operations and bytes per second of a large product and a large copy."""
        return ceilings(self.device, side, megabytes)

    def trim(self) -> dict:
        """Give freed memory, and that of the CUDA graph, back to the system."""
        if self.replay is not None:
            self.replay = None
            self.step.clear()  # The gradients are in the graph's memory.
        trim(self.device)
        return {}


def reason(error: Exception) -> str:
    """Why an implementation is left out, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ''
    if isinstance(error, ModuleNotFoundError):
        return f'not installed ({text})'
    return f'{type(error).__name__}: {text}'


def take_standard_output() -> TextIO:
    """A private copy of standard output; from now on libraries print to standard error."""
    channel = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    return channel


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent closes the pipe when interrupted.
    channel = take_standard_output()
    session = Session()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(session, request.pop('do'))(**request)
        except Exception as error:  # Libraries raise many kinds; each is a reason to be shown.
            answer = {'error': reason(error)}
        print(json.dumps(answer), file=channel, flush=True)


if __name__ == '__main__':
    main()
