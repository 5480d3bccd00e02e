"""The caches of tensors: safe with threads, bounded."""

import gc
import sys
import threading

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers.caches import cache_tensors
from tests.helpers.models import SMALL_ARCH


def test_results_are_kept_until_maxsize_others_were_used():
    calls = []
    square = cache_tensors(2)(lambda x: calls.append(x) or torch.tensor(x * x))
    assert [square(x).item() for x in (1, 2, 1, 3, 1, 2)] == [1, 4, 1, 9, 1, 4]
    assert calls == [1, 2, 3, 2]


@pytest.fixture
def _frequent_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures('_frequent_switches')
def test_threads_share_a_cache():
    square = cache_tensors(2)(lambda x: torch.tensor(x * x))
    failures, barrier = [], threading.Barrier(8)

    def work():
        try:
            barrier.wait()
            for i in range(10000):
                assert square(i % 7).item() == (i % 7) ** 2
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def live_bytes():
    """Bytes of all tensors that are in memory, each storage once."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
    # (A sparse tensor of another test has no storage.)
    storages = [x.untyped_storage() for x in tensors if x.layout == torch.strided]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_memory_does_not_grow_with_the_number_of_sizes():
    window, heads = 8, SMALL_ARCH['num_heads']
    model = SwinTransformerV2(SMALL_ARCH, window_size=window).eval()
    sizes = [(96 + 4 * (i % 20), 96 + 4 * (i // 20)) for i in range(200)]
    before = live_bytes()
    with torch.no_grad():
        for size in sizes:
            model(torch.zeros(1, 3, *size))
    # As in docs/usage.md: the index of each token, 16 grids of windows; nine masks each; the table
    # and index of 32 windows; the bias of each block with the weights of its network.
    tokens, area = (176 // 4 + window) ** 2, window**2
    grids = 16 * (8 * tokens + 9 * (area**2 + 8 * area))
    tables = 32 * (8 * area**2 + 8 * (2 * window) ** 2)
    biases = sum(2 * 4 * (n * area**2 + 512 * (n + 3)) for n in heads)
    grown = live_bytes() - before
    assert 0 < grown <= grids + tables + biases
