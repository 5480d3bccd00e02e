"""Report all faults of the data sets of a config; exit with 1 if one is an error."""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmengine.config import Config, ConfigDict

from tools.data.faults import Fault, by_kind
from tools.data.whole_check import Checkup, check_data_set
from tools.engine.config_checks import missing_paths, plain_configs
from tools.engine.runner import load_config
from tools.utils import cli
from tools.utils.errors import UserError

SPLITS = ('train', 'val', 'test')
_SHOWN = 5  # Faults of a kind.


def parse_args():
    parser = cli.make_parser(__doc__)
    parser.add_argument('--split', choices=[*SPLITS, 'all'], default='all', help='default: all')
    parser.add_argument(
        '--workers',
        type=cli.positive,
        default=_cores(),
        help='processes that decode files (default: one per core)',
    )
    parser.add_argument(
        '--out', type=cli.file_type('.json'), help='a .json file for the list of all faults'
    )
    return parser.parse_args()


def _cores() -> int:
    """Those that this process may use, where that can be known."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def data_sets(cfg: Config, split: str) -> list[tuple[str, ConfigDict]]:
    """Data loader and config of each data set, once if several loaders read the same.

    Raises:
        UserError: If the config lacks the loader of a split.
    """
    found = []
    for name in SPLITS if split == 'all' else [split]:
        loader = f'{name}_dataloader'
        if not cfg.get(loader):
            if split == 'all':
                continue
            raise UserError(f'--split {split}: the config lacks {loader}')
        for dataset in plain_configs(cfg[loader]['dataset']):
            same = [entry for _, entry in found if _data_of(entry) == _data_of(dataset)]
            if not same:
                found.append((loader, dataset))
    return found


def _data_of(dataset: ConfigDict) -> dict:
    return {key: value for key, value in dataset.items() if key != 'pipeline'}


def check(dataset: ConfigDict, scope: str, loader: str, workers: int) -> Checkup:
    """All faults of a data set, or the paths that are missing; see :func:`check_data_set`."""
    missing = [Fault('missing data', text) for text in missing_paths(dataset, loader)]
    return Checkup(missing, 0) if missing else check_data_set(dataset, scope, loader, workers)


def print_checkup(loader: str, dataset: ConfigDict, checkup: Checkup, seconds: float) -> None:
    """Print the number of faults of each kind, errors first, and some of them."""
    place = dataset.get('ann_file') or dataset.get('data_prefix') or ''
    print(
        f'{loader}: {dataset.type} {dataset.get("data_root") or ""} {place}: '
        f'{checkup.num_images} images in {seconds:.1f} s'
    )
    for kind, faults in sorted(by_kind(checkup.faults).items(), key=lambda kv: not _is_error(kv)):
        level = 'error' if faults[0].is_error else 'warning'
        print(f'  {level}: {kind}: {len(faults)}')
        for fault in faults[:_SHOWN]:
            print(f'    {fault.message}')
        if len(faults) > _SHOWN:
            print(f'    ... and {len(faults) - _SHOWN} more')


def _is_error(kind_and_faults: tuple[str, list[Fault]]) -> bool:
    return kind_and_faults[1][0].is_error


def main():
    args = parse_args()
    cfg = load_config(args)
    entries, num_errors, num_warnings = [], 0, 0
    for loader, dataset in data_sets(cfg, args.split):
        start = time.perf_counter()
        checkup = check(dataset, cfg.default_scope, loader, args.workers)
        print_checkup(loader, dataset, checkup, time.perf_counter() - start)
        errors = sum(fault.is_error for fault in checkup.faults)
        num_errors += errors
        num_warnings += len(checkup.faults) - errors
        entries += [dict(loader=loader, **fault._asdict()) for fault in checkup.faults]
    print(f'{num_errors} errors, {num_warnings} warnings')
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        report = dict(config=args.config, errors=num_errors, warnings=num_warnings, faults=entries)
        args.out.write_text(json.dumps(report, indent=2))
    sys.exit(1 if num_errors else 0)


if __name__ == '__main__':
    cli.run(main)
