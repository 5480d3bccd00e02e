"""Caches of tensors, and when they must not be used."""

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transforms_active() -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, is in progress.

    Then all operators must be ones that torch can differentiate and batch by itself.
    """
    # (Neither has a public query. The compiler traces both.)
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def exporting() -> bool:
    """Whether torch.export, torch.onnx or torch.jit.trace makes a graph of this call."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


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


def capturing() -> bool:
    """Whether a CUDA graph is being captured on the current stream."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def current_stream(device: torch.device) -> int:
    """What identifies the stream on which a device computes at present; 0 if it has none."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == 'cuda' else 0


# Read by CUDA graphs, at addresses that the graphs hold: they must never be freed.
_captured: list = []


def keep_for_graph(cached: Any) -> None:
    """Keep a cached result until the process ends if a CUDA graph is being captured."""
    if capturing() and not any(cached is kept for kept in _captured):
        _captured.append(cached)


def cache_tensors(maxsize: int) -> Callable:
    """Cache the last `maxsize` results of a function that returns tensors.

    Its arguments must be hashable, one of them the device of the tensors.

    The cache is safe with threads, streams and CUDA graphs:

    - A result belongs to the stream that computed it. Another stream could read it too early, and
      write to its memory while it is still read, once it is freed.
    - What a captured graph reads is never freed. It may be of any stream, since all have been
      waited for when a capture begins.
    - What is made during a capture, in the memory of that graph, is not cached.
    """

    def decorate(function: Callable) -> Callable:
        results: OrderedDict = OrderedDict()
        lock = Lock()

        def find(stream: int, args: tuple) -> Any:
            key = stream, args
            if key not in results and capturing():
                key = next((each for each in results if each[1] == args), key)
            if key in results:
                results.move_to_end(key)
            return results.get(key)

        def find_or_compute(args: tuple) -> Any:
            stream = current_stream(next(x for x in args if isinstance(x, torch.device)))
            with lock:
                result = find(stream, args)
            if result is not None:
                keep_for_graph(result)
                return result
            # The result outlives this call: a tensor made in inference mode could not take part
            # in a later training step.
            with torch.inference_mode(False):
                result = function(*args)
            if not capturing():
                with lock:
                    results[stream, args] = result
                    if len(results) > maxsize:
                        results.popitem(last=False)
            return result

        @wraps(function)
        def cached(*args):
            # (Apart from the rest: torch 2.7 cannot trace a function that refers to `results`.)
            return find_or_compute(args) if caches_allowed() else function(*args)

        return cached

    return decorate
