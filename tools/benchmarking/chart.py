"""The chart of a benchmark: the speed of each implementation relative to the fastest other one."""

import textwrap
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from tools.benchmarking.cases import LABELS, is_another_v2


def _colors(shown: list[str]) -> dict:
    """Warm colors for ours, blues for the others, gray for the limit and for another network."""
    ours = [name for name in shown if name.startswith('ours')]
    others = [name for name in shown if is_another_v2(name)]
    colors = dict.fromkeys(shown, '0.65') | {'gemm': '0.85'}
    for names, map_name in ((ours, 'Reds'), (others, 'Blues')):
        shades = plt.get_cmap(map_name)
        for index, name in enumerate(names):
            colors[name] = shades(0.8 - 0.5 * index / len(names))
    return colors


def draw(results: dict, path: Path) -> None:
    """Draw the speeds of all cases as grouped bars.

    Speed is relative to the fastest other implementation of the case, or to ours where none was
    measured. The bars of the GEMM limit are cut off where they would make the others short.
    """
    bars, ticks, labels, top = [], [], [], 0.0
    for result in results['cases']:
        times = {name: each['median'] for name, each in result['implementations'].items()}
        unit = times.get(result['fastest_implementation'] or result['fastest_ours'])
        if unit is None:
            continue
        bars += [
            (top + index, name, unit / time) for index, (name, time) in enumerate(times.items())
        ]
        ticks.append(top + (len(times) - 1) / 2)
        labels.append(result['name'].replace(', ', '\n', 1))
        top += len(times) + 1
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.24 * top), layout='constrained')
    shown = [name for name in LABELS if any(name == bar[1] for bar in bars)]
    colors = _colors(shown)
    _draw_bars(axes, bars, colors)
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_xlabel(
        'speed relative to the fastest other implementation, the dashed line (higher is better; '
        'relative to ours where there is no other)',
        fontsize=8,
    )
    machine = results['machine']
    title = (
        f'SwinV2-{results["settings"]["arch"]} backbones on {machine["device"]}, '
        f'CPU threads: {machine["threads"]}'
    )
    axes.set_title('\n'.join(textwrap.wrap(title, 80)), fontsize=10)
    figure.legend(
        [plt.Rectangle((0, 0), 1, 1, color=colors[name]) for name in shown],
        [LABELS[name] for name in shown],
        loc='outside lower center',
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, dpi=130, format='png')
    plt.close(figure)


def _draw_bars(axes: plt.Axes, bars: list[tuple[float, str, float]], colors: dict) -> None:
    """Draw (position, name, speed) as horizontal bars with their speeds beside them."""
    longest = 1.6 * max((speed for _, name, speed in bars if name != 'gemm'), default=1.0)
    for position, name, speed in bars:
        bar = axes.barh(position, min(speed, longest), height=0.9, color=colors[name])
        text = f'{speed:.2f}' + ' →' * (speed > longest)
        box = dict(boxstyle='square,pad=0.1', color='white')
        axes.bar_label(bar, [text], padding=3, fontsize=7, bbox=box)
    axes.axvline(1, color='black', linewidth=0.8, linestyle='--', zorder=0.5)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
