"""Mistakes of the user, which end a script with one line, told apart from bugs, which don't."""

import difflib
import dis
import pickle
import re
from collections.abc import Iterable

from swinv2_backbone.checkpoints.errors import CheckpointError

_OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
# What Python itself says of a call whose arguments come from a config.
_BAD_CALL = re.compile(r'got an unexpected keyword argument|missing \d+ required')


class UserError(Exception):
    """A mistake of the user; shown as one line, without a traceback."""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"``, or an empty string if no candidate is close."""
    close = difflib.get_close_matches(name, [str(c) for c in candidates], n=1)
    return f" (did you mean '{close[0]}'?)" if close else ''


def first_line(error: BaseException) -> str:
    """An exception's message on one line."""
    if isinstance(error, pickle.UnpicklingError):  # torch's own advises the unsafe loader.
        return (
            'a checkpoint was refused by the safe loader (weights_only=True): it was not '
            'written by torch.save, or holds more than tensors and plain data'
        )
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def is_user_mistake(error: BaseException) -> bool:
    """Whether an exception before the first batch is about what the user asked for.

    That is so for the classes that mean nothing else, and for anything raised while torch reads a
    file. A ValueError, TypeError or KeyError may as well be a bug. It counts as a mistake of the
    user only if a ``raise`` or ``assert`` statement of OpenMMLab, or a ``raise`` of this package,
    made it: then it was checked for, and its message is written for the user. One that an
    operation ended in (a failed look-up, say) was not expected by anyone. The exception to that
    are arguments in a config that an OpenMMLab class does not take.
    """
    if isinstance(error, (UserError, CheckpointError, OSError)):
        return True
    innermost, modules = error.__traceback__, set()
    while innermost is not None:
        module = innermost.tb_frame.f_globals.get('__name__', '')
        modules.add(module)
        instruction = innermost.tb_frame.f_code.co_code[innermost.tb_lasti]
        innermost = innermost.tb_next
    if 'torch.serialization' in modules:
        return True
    package, by_statement = module.split('.')[0], instruction == dis.opmap['RAISE_VARARGS']
    if package == 'swinv2_backbone':
        return by_statement and isinstance(error, (ValueError, TypeError, ImportError))
    if package not in _OPENMMLAB:
        return False
    if isinstance(error, TypeError) and _BAD_CALL.search(str(error)):
        return True
    checks = (ValueError, TypeError, ImportError, KeyError, AssertionError)
    return by_statement and isinstance(error, checks)
