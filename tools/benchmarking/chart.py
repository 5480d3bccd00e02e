"""The image of a benchmark: how fast everyone is beside the fastest implementation."""

import textwrap
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from tools.benchmarking.cases import LABELS

# Ours stands out, the limit stands back.
_COLOURS = dict(
    zip(
        LABELS,
        (
            '#c0392b',
            '#e59866',
            '#f0b27a',
            '#1f618d',
            '#2e86c1',
            '#5dade2',
            '#85c1e9',
            '#7d9a6b',
            '#d0d3d4',
        ),
        strict=True,
    )
)


def draw(results: dict, path: Path) -> None:
    """Draw the speeds of all cases as grouped bars.

    Speed is relative to the fastest implementation of the case, or to ours where no implementation took part. The bars
    of the GEMM limit are cut off where they would make the others short.
    """
    bars, ticks, labels, top = [], [], [], 0.0
    for result in results['cases']:
        times = {name: each['median'] for name, each in result['implementations'].items()}
        unit = times.get(result['fastest_peer'] or 'ours')
        if unit is None:
            continue
        bars += [
            (top + index, name, unit / time) for index, (name, time) in enumerate(times.items())
        ]
        ticks.append(top + (len(times) - 1) / 2)
        labels.append(result['name'].replace(', ', '\n', 1))
        top += len(times) + 1
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.24 * top), layout='constrained')
    longest = 1.6 * max((speed for _, name, speed in bars if name != 'gemm'), default=1.0)
    for place, name, speed in bars:
        length = min(speed, longest)
        axes.barh(place, length, height=0.9, color=_COLOURS[name])
        axes.annotate(
            f'{speed:.2f}' + ' →' * (length < speed),
            (length, place),
            xytext=(3, 0),
            textcoords='offset points',
            va='center',
            fontsize=7,
            bbox=dict(boxstyle='square,pad=0.1', color='white'),
        )
    axes.axvline(1, color='black', linewidth=0.8, linestyle='--', zorder=0.5)
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    axes.set_xlabel(
        'speed relative to the fastest implementation, the dashed line (higher is better; '
        'ours where there is no implementation)',
        fontsize=8,
    )
    machine = results['machine']
    title = (
        f'SwinV2-{results["settings"]["arch"]} backbones on {machine["device"]}, '
        f'CPU threads: {machine["threads"]}'
    )
    axes.set_title('\n'.join(textwrap.wrap(title, 80)), fontsize=10)
    shown = [name for name in LABELS if any(name == bar[1] for bar in bars)]
    figure.legend(
        [plt.Rectangle((0, 0), 1, 1, color=_COLOURS[name]) for name in shown],
        [LABELS[name] for name in shown],
        loc='outside lower center',
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, dpi=130, format='png')
    plt.close(figure)
