"""One step of an implementation, and how its time and its memory are measured."""

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tools.benchmarking.cases import DTYPES, Case
from tools.utils.memory import PeakMemory, wait_for


class NetworkStep:
    """A forward, or a forward and a backward without an optimizer."""

    def __init__(self, network: nn.Module, case: Case, device: str):
        self.network = network
        self.device = device
        self.dtype = DTYPES[case.dtype]
        self.train = case.mode == 'train'
        generator = torch.Generator().manual_seed(1)
        self.image = torch.randn(case.batch, 3, case.height, case.width, generator=generator).to(
            device
        )

    def clear(self) -> None:
        """Drop the gradients of the last step."""
        self.network.zero_grad(set_to_none=True)

    def __call__(self) -> list[Tensor]:
        """Do the step and return the maps."""
        self.clear()
        with (
            torch.set_grad_enabled(self.train),
            torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32),
        ):
            maps = self.network(self.image)
        if self.train:
            sum(each.float().square().mean() for each in maps).backward()
        return maps


def check_maps(maps: list[Tensor], shapes: list[tuple[int, ...]]) -> None:
    """Raise a ValueError unless maps have these shapes and are finite."""
    found = [tuple(each.shape) for each in maps]
    if found != shapes:
        raise ValueError(f'its maps are of shapes {found}, not {shapes}')
    if not all(each.isfinite().all() for each in maps):
        raise ValueError('its maps are not finite')


def relative_error(got: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """``|got - exact| / |exact|`` of all tensors together, in the Euclidean norm."""
    pairs = [(g.double().to(e.device), e.double()) for g, e in zip(got, exact, strict=True)]
    error = math.hypot(*((g - e).norm().item() for g, e in pairs))
    return error / math.hypot(*(e.norm().item() for _, e in pairs))


def timed(step: Callable[[], object], device: str) -> float:
    """Seconds that a step takes."""
    wait_for(device)
    begin = time.perf_counter()
    result = step()
    wait_for(device)
    seconds = time.perf_counter() - begin
    del result  # Freeing what the step returned is not part of it.
    return seconds


def peak_memory(step: NetworkStep, device: str) -> tuple[int, str]:
    """Bytes that a step needs at its peak, on top of weights and image, and how it was measured.

    That is activations, workspaces, and in training the gradients of the weights. The step must
    have been done before: the first one also loads code and starts threads.
    """
    step.clear()
    memory = PeakMemory(device)
    step()
    return memory.taken()
