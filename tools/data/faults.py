"""Faults of data, as the checks find them: the first ends a run, or all are reported."""

import logging
import os
from collections.abc import Iterable
from typing import NamedTuple

from mmengine.logging import print_log

from tools.utils.errors import UserError

FAULTS_VARIABLE = 'SWINV2_DATA_FAULTS'  # `warn`: faults do not end a run.
CROWDS = 'crowds'  # Usual in COCO: reported, but not logged in each run.


class Fault(NamedTuple):
    """Something wrong in a data set.

    Attributes:
        kind: What all faults of this kind have in common, for counts.
        message: One line that names the file and what to do.
        is_error: False if the toolbox can deal with it, as by leaving out an object.
    """

    kind: str
    message: str
    is_error: bool = True


def by_kind(faults: Iterable[Fault]) -> dict[str, list[Fault]]:
    """The faults of each kind."""
    kinds: dict[str, list[Fault]] = {}
    for fault in faults:
        kinds.setdefault(fault.kind, []).append(fault)
    return kinds


def raise_first(faults: Iterable[Fault]) -> None:
    """Log the first warning of each kind, and raise the first error.

    Raises:
        UserError: With the first error, and the number of others.
    """
    faults = list(faults)
    allow = os.environ.get(FAULTS_VARIABLE) == 'warn'
    errors = [fault for fault in faults if fault.is_error and not allow]
    if errors:
        more = ''
        if len(errors) > 1:
            more = f' ({len(errors) - 1} more: tools/misc/check_dataset.py lists them)'
        raise UserError(f'{errors[0].message}{more}')
    for kind, same in by_kind(faults).items():
        if kind != CROWDS:
            more = f' ({len(same)} {kind}: tools/misc/check_dataset.py lists them)'
            line = same[0].message + (more if len(same) > 1 else '')
            print_log(line, logger='current', level=logging.WARNING)
