"""Caches of tensors, and when they must not be used."""

from collections.abc import Callable
from functools import lru_cache, wraps

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transforms_active() -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, is in progress.

    Then all operators must be ones that torch can differentiate and batch by itself.
    """
    # (Neither has a public query.)
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def caches_allowed() -> bool:
    """Whether tensors of this call can be used by later ones, and the other way round.

    Not so while something traces or transforms the computation: a tracer's graph computes
    everything itself, the tensors that are made meanwhile may be fake ones, and a cached one would
    lack the derivatives.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or transforms_active()
        or type(torch.empty(0)) is not Tensor  # In a mode that makes fake tensors.
    )


def cache_tensors(maxsize: int) -> Callable:
    """Cache the last `maxsize` results of a function of hashable arguments that returns tensors.

    It is functools.lru_cache, which is safe with threads, where :func:`caches_allowed` allows it.
    """

    def decorate(function: Callable) -> Callable:
        @lru_cache(maxsize)
        def compute(*args):
            # The result outlives this call: a tensor made in inference mode could not take part
            # in a later training step.
            with torch.inference_mode(False):
                return function(*args)

        @wraps(function)
        def cached(*args):
            return compute(*args) if caches_allowed() else function(*args)

        return cached

    return decorate
