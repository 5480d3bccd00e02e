"""Make a small data set of shapes, train on it from random weights, draw predictions and test.

Takes minutes on a CPU. If interrupted, run it again: it resumes.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = {'segmentation': 'upernet_swinv2_tiny_shapes', 'detection': 'mask_rcnn_swinv2_tiny_shapes'}


def commands(task: str) -> list[list[str]]:
    """The tools that make up the demo of a task, each with its arguments."""
    config = str(ROOT / 'configs' / task / f'{NAMES[task]}.py')
    work_dir = f'work_dirs/{NAMES[task]}'
    image = f'{work_dir}/predictions.png'
    return [
        ['dataset_converters/make_shapes.py', '--out', 'data/shapes'],
        ['train.py', config, '--resume'],
        ['analysis_tools/side_by_side.py', config, work_dir, '--out', image],
        ['test.py', config, work_dir, '--baseline'],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--task', choices=NAMES, default='segmentation')
    task = parser.parse_args().task
    # The demo is made for CPUs, and mmcv's operators may be compiled for them alone.
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '-1'}
    for script, *arguments in commands(task):
        command = [sys.executable, str(ROOT / 'tools' / script), *arguments]
        try:
            status = subprocess.call(command, env=environment)
        except KeyboardInterrupt:
            status = 130
        if status:
            sys.exit(status)
    print(f'-> work_dirs/{NAMES[task]}/predictions.png: image, truth and prediction')


if __name__ == '__main__':
    main()
