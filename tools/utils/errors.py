"""Distinguishing mistakes of the user, which end a script with one line, from bugs."""

import difflib
import pickle
import re
import traceback
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

    UserError, CheckpointError and OSError always are, and so is whatever torch raises while it
    reads a checkpoint. A ValueError, TypeError or KeyError may also come from a bug. It is the
    user's if a ``raise`` statement of this package or OpenMMLab (there also an ``assert``) made it:
    then the code checked for it and has a message for the user. It is a bug if an operation made
    it, such as a failed look-up. Only one such operation is the user's: OpenMMLab calls a class
    with arguments that it does not take, because these come from the config.
    """
    if isinstance(error, (UserError, CheckpointError, OSError)):
        return True
    frames = list(traceback.walk_tb(error.__traceback__))
    modules = [frame.f_globals.get('__name__', '') for frame, _ in frames]
    if 'torch.serialization' in modules:
        return True
    package = modules[-1].partition('.')[0] if modules else ''
    statement = traceback.extract_tb(error.__traceback__)[-1].line or '' if modules else ''
    checked = statement.startswith(('raise ', 'assert '))
    if package == 'swinv2_backbone':
        return checked and isinstance(error, (ValueError, TypeError, ImportError))
    if package not in _OPENMMLAB:
        return False
    if isinstance(error, TypeError) and _BAD_CALL.search(str(error)):
        return True
    checks = (ValueError, TypeError, ImportError, KeyError, AssertionError)
    return checked and isinstance(error, checks)
