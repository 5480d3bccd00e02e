"""The results of a test, as a table and as a file."""

import argparse
from datetime import datetime
from pathlib import Path

import mmengine

from tools.engine.cost import MEGABYTES, SECONDS
from tools.utils.table import format_number, format_table

# The columns of each toolbox's table, and the metrics they show. The table of detectors has a row
# for boxes and one for masks.
_COLUMNS = {
    'mmseg': {'': {'mIoU': 'mIoU', 'mAcc': 'mAcc', 'aAcc': 'aAcc'}},
    'mmdet': {
        kind: {
            'AP': f'coco/{kind}_mAP',
            'AP50': f'coco/{kind}_mAP_50',
            'AP75': f'coco/{kind}_mAP_75',
        }
        for kind in ('bbox', 'segm')
    },
    'mmpretrain': {'': {'top-1': 'accuracy/top1', 'top-5': 'accuracy/top5'}},
}


def results_table(results: dict[str, dict], scope: str) -> str:
    """A short table of metrics, which are given by row, under the toolbox's own names."""
    cost = {key: key for key in (SECONDS, MEGABYTES) if any(key in m for m in results.values())}
    rows = []
    for name, metrics in results.items():
        for kind, columns in _COLUMNS[scope].items():
            if metrics.keys() & columns.values():
                cells = (format_number(metrics.get(k), '.3f') for k in (columns | cost).values())
                rows.append([f'{name} {kind}'.strip(), *cells])
    return format_table([['', *next(iter(_COLUMNS[scope].values())), *cost], *rows])


def write_results(path: Path, args: argparse.Namespace, results: dict[str, dict]) -> None:
    """Write metrics as JSON, with the config and the checkpoint they belong to."""
    content = dict(
        config=args.config,
        checkpoint=args.checkpoint,
        tta=args.tta,
        date=datetime.now().isoformat(timespec='seconds'),
        results=results,
    )
    mmengine.dump(content, path, indent=2)
