"""Measurements of the models of configs, each in a process of its own, kept in a file."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from swinv2_backbone.checkpoints.files import atomic_file
from tools.benchmarking.machine import cpu_info
from tools.benchmarking.measurement import say
from tools.utils.complexity import measure_complexity
from tools.utils.errors import UserError
from tools.utils.example_batch import build_model, example_batch
from tools.utils.memory import PeakMemory
from tools.zoo.facts import ROOT, image_size, load

RESULTS = ROOT / 'docs/benchmarks/model_zoo.json'
IMAGES, SIDE = 2, 256
_STEPS = 3


def measure(name: str, untimed: bool = False, step_only: bool = False) -> dict:
    """Complexity, and time and memory of the training of a config's model, on this CPU.

    Args:
        untimed: Leave the time out (None), for a machine that does other work.
        step_only: Leave the complexity out, which does not change from run to run.
    """
    return _training_step(name, untimed) | ({} if step_only else _complexity(name))


def _training_step(name: str, untimed: bool) -> dict:
    """Memory is the peak of a training step with AdamW beyond the process before the model was
    built: weights, gradients, the optimizer's state and activations. The time is the median of the
    steps after the first, at batches of random images.
    """
    cfg = without_padding(load(name))
    started = PeakMemory('cpu')
    model = build_model(cfg).train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    seconds = []
    for _ in range(1 + (1 if untimed else _STEPS)):
        batch = example_batch(cfg, (SIDE, SIDE), IMAGES)
        before = time.perf_counter()
        model.train_step(batch, optim_wrapper)
        seconds.append(time.perf_counter() - before)
    memory, _ = started.taken()
    return dict(
        megabytes=round(memory / 1e6),
        seconds=None if untimed else round(statistics.median(seconds[1:]), 2),
        machine=f'{cpu_info()["model name"]}, threads: {torch.get_num_threads()}, torch '
        f'{torch.__version__}, {time.strftime("%Y-%m-%d")}',
    )


def without_padding(cfg: Config) -> Config:
    """The config without what pads a batch to the size of the recipe's crops, to compare models at
    one size.
    """
    cfg.model.data_preprocessor.pop('batch_augments', None)  # Mask2Former's, of mmdet
    if 'size' in cfg.model.data_preprocessor:  # mmseg's
        cfg.model.data_preprocessor.size = (SIDE, SIDE)
    return cfg


def _complexity(name: str) -> dict:
    cfg = load(name)
    size = image_size(cfg)
    model = measure_complexity(cfg, size)['model']
    return dict(parameters=model.parameters, multiply_adds=model.multiply_adds, size=size)


def read_results() -> dict[str, dict]:
    """What was measured, by the name of the config."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def measure_all(names: list[str], command: list[str]) -> None:
    """Measure configs one after the other and add each to the file, over what it has of them.

    Args:
        command: A script and its options that, followed by a name, print its :func:`measure` as
            their last line.

    Raises:
        UserError: If one cannot be measured; what was measured before is kept.
    """
    for name in names:
        done = subprocess.run(
            [sys.executable, *command, name], capture_output=True, text=True, cwd=ROOT
        )
        if done.returncode:
            raise UserError(f'{name}: {(done.stderr.strip().splitlines() or ["failed"])[-1]}')
        results = read_results()
        results[name] = results.get(name, {}) | json.loads(done.stdout.splitlines()[-1])
        text = json.dumps(dict(sorted(results.items())), indent=1)
        with atomic_file(RESULTS) as path:
            Path(path).write_text(text + '\n')
        say(f'{name}: {results[name]}')
