"""Workarounds for defects of dependencies: what fails, the issue there, when to remove it."""

import os
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

# The statistics of a HistoryBuffer, which its pickle looks up on the class.
_STATISTICS = ('min', 'max', 'mean', 'current')
_NUMBERS = ('float64', 'float32', 'float16', 'int64', 'int32', 'int16', 'int8', 'uint8')


def allow_mmengine_checkpoints() -> None:
    """Let torch's safe loader read the checkpoints that mmengine saves.

    What fails: resuming from, and testing, a checkpoint that mmengine saved, where ``torch.load``
    defaults to ``weights_only=True`` (torch >= 2.6): beside the weights is the message hub with
    its HistoryBuffer objects. The loader stays safe: added are HistoryBuffer, numpy's arrays and
    scalars, and a `getattr` that returns the statistics of HistoryBuffer and nothing else.

    The forks (onedl-mmengine 0.10.12) allow any `getattr` while they load, take back what is
    allowed here when they have loaded, and repeat a refused load unsafely. Their list is emptied;
    the environment variable makes the second load safe, too.

    Upstream: https://github.com/open-mmlab/mmengine/issues/1655
    Remove: when the oldest mmengine supported here adds them itself.
    """
    # Under the first variable, which is often recommended against this very error, torch would
    # unpickle anything. The second also overrules callers that ask for an unsafe load. With both
    # set, torch refuses to load at all.
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    torch.serialization.add_safe_globals(_mmengine_globals())
    from mmengine.runner import checkpoint  # imports OpenCV, which the package alone can do without

    if hasattr(checkpoint, 'get_torch_safe_globals'):
        checkpoint.get_torch_safe_globals = list


def safe_mmengine_globals() -> AbstractContextManager:
    """The same within a ``with`` block, for calls with ``weights_only=True`` of their own."""
    # On exit torch takes back all that the context was given, whoever had allowed it.
    allowed = torch.serialization.get_safe_globals()
    return torch.serialization.safe_globals([f for f in _mmengine_globals() if f not in allowed])


def _mmengine_globals() -> list:
    dtypes = [type(np.dtype(name)) for name in (*_NUMBERS, 'bool', 'str')]
    functions: list[Any] = [np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
    # numpy 2 moved these two; a file has the name of the numpy that wrote it.
    moved = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in functions
        for core in ('core', '_core')
    ]
    restricted = (_getattr_of_history_buffer, 'builtins.getattr')
    return [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *moved, restricted]


def _getattr_of_history_buffer(obj: object, name: str) -> object:
    """The `getattr` of a checkpoint's pickle."""
    if obj is not HistoryBuffer or name not in _STATISTICS:
        raise ValueError(
            f'a checkpoint calls getattr({obj!r}, {name!r}); only the statistics of HistoryBuffer '
            'are allowed'
        )
    return getattr(obj, name)
