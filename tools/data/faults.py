"""Faults of data, as the checks find them: the first ends a run, or all are reported."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from mmengine.logging import print_log

from tools.utils.errors import UserError

FAULTS_VARIABLE = 'SWINV2_DATA_FAULTS'  # `warn`: faults do not end a run.


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


def counts(faults: Iterable[Fault]) -> str:
    """The number of faults of each kind, on one line."""
    return ', '.join(f'{kind} ({n})' for kind, n in Counter(f.kind for f in faults).items())


def raise_first(faults: Iterable[Fault], name: str) -> None:
    """Log the number of warnings, and raise the first error.

    Args:
        name: Of what was checked.

    Raises:
        UserError: With the first error, and the number of others.
    """
    faults = list(faults)
    errors = [fault for fault in faults if fault.is_error]
    allowed = faults if os.environ.get(FAULTS_VARIABLE) == 'warn' else set(faults) - set(errors)
    if allowed:
        print_log(
            f'{name}: {counts(f for f in faults if f in allowed)}; tools/misc/check_dataset.py '
            'lists them',
            logger='current',
            level=logging.WARNING,
        )
    if errors and errors[0] not in allowed:
        more = ''
        if len(errors) > 1:
            more = f' ({len(errors) - 1} more: tools/misc/check_dataset.py lists them)'
        raise UserError(f'{errors[0].message}{more}')
