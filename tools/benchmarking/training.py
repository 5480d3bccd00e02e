"""The process of one way to train: does some updates, prints their time and memory as JSON.

Its argument is a :class:`Training` as JSON.
"""

import dataclasses
import json
import sys

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from swinv2_backbone import SwinTransformerV2
from tools.benchmarking.cases import ARCHITECTURES
from tools.benchmarking.process import ROOT
from tools.benchmarking.steps import timed
from tools.engine.amp import use_amp
from tools.engine.optimizers import use_adamw
from tools.utils.memory import PeakMemory


@dataclasses.dataclass(frozen=True)
class Training:
    """A way to train a backbone, with AdamW as in the configs.

    An update is of `batch` images, in as many forwards as are accumulated. The sizes are in pixels,
    the window in tokens. `amp` and `optimizer` are as the options of tools/train.py, or None.
    """

    height: int
    width: int
    batch: int = 2
    window: int = 8
    arch: str = 'tiny'
    device: str = 'cpu'
    amp: str | None = None
    with_cp: bool | tuple[bool, ...] = False
    accumulate: int = 1
    optimizer: str | None = None


def measure(training: Training, rounds: int) -> dict:
    """Seconds of each of some updates after the first, and bytes at the peak of all.

    The bytes are those of weights, gradients, moments of the optimizer, and activations, beyond
    what the process takes after an update of a small network, which loads code.
    """
    small = dict(height=64, width=64, arch='mini')
    _update(dataclasses.replace(training, **small), rounds=0)
    memory = PeakMemory(training.device)
    seconds = _update(training, rounds)
    count, how = memory.taken()
    return dict(seconds=seconds, bytes=count, how=how)


def _update(training: Training, rounds: int) -> list[float]:
    """Build a backbone and update it; the seconds of each update but the first."""
    cfg = Config.fromfile(ROOT / 'configs/_base_/schedules/adamw.py')
    cfg.default_scope = 'mmseg'
    cfg.optim_wrapper.accumulative_counts = training.accumulate
    if training.amp:
        use_amp(cfg, training.amp)
    if training.optimizer:
        use_adamw(cfg, training.optimizer)
    model = SwinTransformerV2(
        ARCHITECTURES[training.arch],
        window_size=training.window,
        pretrained_window_sizes=training.window,
        with_cp=training.with_cp,
    )
    model = model.to(training.device).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    size = training.batch, 3, training.height, training.width
    images = torch.randn(*size, generator=torch.Generator().manual_seed(1)).to(training.device)

    def update() -> None:
        for part in images.chunk(training.accumulate):
            with wrapper.optim_context(model):
                maps = model(part)
            wrapper.update_params(sum(each.float().square().mean() for each in maps))

    seconds = [timed(update, training.device) for _ in range(1 + rounds)][1:]
    if not all(p.isfinite().all() for p in model.parameters()):
        raise ValueError('the weights are not finite after the updates')
    return seconds


def main() -> None:
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request.pop('threads'))
    rounds = request.pop('rounds')
    with_cp = request.get('with_cp')
    request['with_cp'] = tuple(with_cp) if isinstance(with_cp, list) else bool(with_cp)
    print(json.dumps(measure(Training(**request), rounds)))


if __name__ == '__main__':
    main()
