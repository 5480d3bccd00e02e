"""The scalars that trainings logged: read from their work dirs, and drawn."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.utils.errors import UserError

# Of a curve: iterations, and values.
Curve = list[tuple[int, float]]
_NO_METRICS = {'time', 'data_time', 'step', 'epoch', 'iter'}


@dataclass
class Scalars:
    """What a training logged, by name, as curves over iterations.

    Attributes:
        train: Losses, learning rates, `time` in seconds per iteration, and so on.
        val: Metrics of validations.
    """

    train: dict[str, Curve] = field(default_factory=dict)
    val: dict[str, Curve] = field(default_factory=dict)

    def curve(self, key: str) -> Curve:
        """A curve of either kind; empty if there is none of this name."""
        return self.train.get(key) or self.val.get(key) or []


def read_scalars(path: Path) -> Scalars:
    """Read what mmengine logged in a work dir, in one or several runs, or in a scalars.json.

    A run that was resumed, or repeated, replaces what earlier ones logged from its first iteration
    on. It may begin with a validation, of the checkpoint that it goes on from.

    Raises:
        UserError: If there is none, or a file is not mmengine's.
    """
    files = sorted(path.glob('*/vis_data/scalars.json')) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UserError(f"'{path}': no scalars.json of a training (TIMESTAMP/vis_data/) in it")
    scalars, steps = Scalars(), {}
    for file in files:
        run = _read_run(file, _last(scalars.train), steps)
        trained = _first(run.train)
        validated = min(trained, _first(run.val))
        for kept, new, begin in (
            (scalars.train, run.train, trained),
            (scalars.val, run.val, validated),
        ):
            for key in dict.fromkeys((*kept, *new)):
                before = [point for point in kept.get(key, []) if point[0] < begin]
                kept[key] = before + new.get(key, [])
    return scalars


def _first(curves: Mapping[str, Curve]) -> float:
    return min((curve[0][0] for curve in curves.values()), default=float('inf'))


def _last(curves: Mapping[str, Curve]) -> int:
    return max((curve[-1][0] for curve in curves.values() if curve), default=0)


def _read_run(file: Path, iteration: int, steps: dict[int, int]) -> Scalars:
    """Read a run.

    Args:
        iteration: The last one that was logged before.
        steps: The iterations of validations by their steps, which are epochs in some configs, and
            iterations in others; those of the run are added.
    """
    run = Scalars()
    lines = file.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = dict(json.loads(line))
        except (ValueError, TypeError):
            if number == len(lines):
                break  # The run was killed while it wrote.
            raise UserError(f"'{file}': line {number} is no record of mmengine's log") from None
        is_train = 'iter' in record
        step = record.get('step', 0)
        if is_train:
            iteration = record['iter']
        elif run.train or step not in steps:
            iteration = steps[step] = max(iteration, step)
        else:  # A validation is repeated.
            iteration = steps[step]
        for key, value in record.items():
            if isinstance(value, (int, float)) and (is_train or key not in _NO_METRICS):
                curves = run.train if is_train else run.val
                curves.setdefault(key, []).append((iteration, value))
    return run


def is_better_low(key: str) -> bool:
    """Whether small values of a scalar are good ones: losses and times."""
    return 'loss' in key or 'time' in key


def main_keys(scalars: Iterable[Scalars]) -> list[str]:
    """The total loss, and the main metrics of validations, of several trainings."""
    found = dict.fromkeys(key for each in scalars for key in each.val)
    main = [key for key in found if key.endswith(('mIoU', '_mAP', 'top1'))]
    return ['loss', *(main or found)]


def draw_panels(panels: Mapping[str, Mapping[str, Curve]], path: Path, title: str) -> None:
    """Write a PNG with panels above each other, each of labeled curves over iterations.

    Args:
        panels: By the text of the vertical axis, the curves by label. Empty ones are left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # Not needed by any other tool.
    from matplotlib.figure import Figure

    shown = {name: {k: c for k, c in each.items() if c} for name, each in panels.items()}
    shown = {name: curves for name, curves in shown.items() if curves}
    figure = Figure(figsize=(9, 1 + 2.8 * len(shown)), layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    for axes, (name, curves) in zip(
        figure.subplots(max(len(shown), 1), squeeze=False)[:, 0], shown.items(), strict=False
    ):
        for label, curve in curves.items():
            marker = 'o' if len(curve) < 30 else None
            axes.plot(*zip(*curve, strict=True), label=label, marker=marker, markersize=3)
        axes.set_ylabel(name)
        axes.set_xlabel('iteration')
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format='png')


def draw_training(scalars: Scalars, path: Path, title: str) -> None:
    """Write a PNG with the losses, the metrics of validations and the learning rate."""
    train = scalars.train
    panels = {
        'loss': {key: curve for key, curve in train.items() if 'loss' in key},
        'validation': scalars.val,
        'learning rate': {'lr': train.get('lr', [])},
    }
    draw_panels(panels, path, title)
