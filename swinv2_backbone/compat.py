"""Shims for upstream defects: what breaks, the upstream issue, when to remove each."""

import builtins
import os
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

# What a HistoryBuffer's pickle looks up on its class: its registered statistics.
_STATISTICS = ('min', 'max', 'mean', 'current')


def allow_mmengine_checkpoints() -> None:
    """Let torch's safe loader read the checkpoints that mmengine saves.

    Breaks: resuming from, and testing, a checkpoint that mmengine saved, on torch >= 2.6, where
    ``torch.load`` defaults to ``weights_only=True``: next to the weights lies the message hub with
    its HistoryBuffer objects. The loader stays safe: it is told of HistoryBuffer, of numpy's arrays
    and scalars, and of a `getattr` that serves HistoryBuffer's statistics and nothing else.

    Upstream: https://github.com/open-mmlab/mmengine/issues/1655
    Remove: when the oldest mmengine supported here allow-lists them itself.
    """
    # torch < 2.6 would unpickle anything, and so would any torch under the variable that is often
    # advised against this very error. With both set, torch refuses to load at all.
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    if hasattr(torch.serialization, 'add_safe_globals'):  # torch >= 2.4
        torch.serialization.add_safe_globals(_mmengine_globals())


def safe_mmengine_globals() -> AbstractContextManager:
    """The same while a block runs, for calls that ask for ``weights_only=True`` themselves."""
    if hasattr(torch.serialization, 'safe_globals'):  # torch >= 2.5
        return torch.serialization.safe_globals(_mmengine_globals())
    return nullcontext()


def _mmengine_globals() -> list:
    # numpy 2 moved both, and a file names them as the numpy that wrote it did.
    reconstruct, scalar = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    moved = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in (reconstruct, scalar)
        for core in ('core', '_core')
    ]
    dtypes = [
        type(np.dtype(kind))
        for kind in (
            'float64',
            'float32',
            'float16',
            'int64',
            'int32',
            'int16',
            'int8',
            'uint8',
            'bool',
            'str',
        )
    ]
    return [
        HistoryBuffer,
        np.ndarray,
        np.dtype,
        *dtypes,
        *moved,
        (_getattr_of_history_buffer, 'builtins.getattr'),
    ]


def _getattr_of_history_buffer(obj: object, name: str) -> object:
    """What ``getattr`` means inside a checkpoint."""
    if obj is not HistoryBuffer or name not in _STATISTICS:
        raise ValueError(
            f'a checkpoint asked for getattr({obj!r}, {name!r}); only the statistics '
            'of HistoryBuffer are allowed'
        )
    return builtins.getattr(obj, name)
