"""The caches of tensors: safe with threads, streams and CUDA graphs; bounded.

Without a GPU, streams and captures are simulated: functions that ask for them are replaced.
"""

import gc
import json
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch

from swinv2_backbone.layers import caches
from swinv2_backbone.layers.caches import cache_tensors
from tests.helpers.models import SMALL_ARCH

CPU = torch.device('cpu')


def test_results_are_kept_until_maxsize_others_were_used():
    calls = []
    square = cache_tensors(2)(lambda x, _: calls.append(x) or torch.tensor(x * x))
    assert [square(x, CPU).item() for x in (1, 2, 1, 3, 1, 2)] == [1, 4, 1, 9, 1, 4]
    assert calls == [1, 2, 3, 2]


@pytest.fixture
def _frequent_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures('_frequent_switches')
def test_threads_share_a_cache():
    square = cache_tensors(2)(lambda x, _: torch.tensor(x * x))
    failures, barrier = [], threading.Barrier(8)

    def work():
        try:
            barrier.wait()
            for i in range(10000):
                assert square(i % 7, CPU).item() == (i % 7) ** 2
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# Bytes of all tensors in memory, each storage once, in a process of its own: in that of other
# tests, theirs come and go.
COUNT = """
import gc
import json
import sys

import torch

from swinv2_backbone import SwinTransformerV2


def live_bytes():
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
    storages = [x.untyped_storage() for x in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


model = SwinTransformerV2(json.loads(sys.argv[1]), window_size=8).eval()
before = live_bytes()
with torch.no_grad():
    for height in range(96, 176, 4):
        for width in range(96, 136, 4):
            model(torch.zeros(1, 3, height, width))
print(live_bytes() - before)
"""


def test_memory_does_not_grow_with_the_number_of_sizes():
    """200 sizes; the bound is that of docs/speed.md."""
    window, heads, depths = 8, SMALL_ARCH['num_heads'], SMALL_ARCH['depths']
    command = [sys.executable, '-c', COUNT, json.dumps(SMALL_ARCH)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The index of each token, padding included, of 16 grids, and nine masks and the valid positions
    # of each; the tables of offsets and indices of 32 windows; for each block the position bias,
    # and what it was computed from: the weights of its network, scales and biases.
    tokens, area = (172 // 4 + window) * (132 // 4 + window), window**2
    grids = 16 * (8 * tokens + 9 * (area**2 + 8 * area))
    tables = 32 * (8 * area**2 + 8 * (2 * window) ** 2)
    channels = [SMALL_ARCH['embed_dims'] * 2**i for i in range(4)]
    blocks = sum(
        depth * 4 * (n * area**2 + 512 * (3 + n) + 2 * n + 5 * c)
        for depth, n, c in zip(depths, heads, channels, strict=True)
    )
    grown = int(done.stdout.splitlines()[-1])  # After what is logged.
    assert 0 < grown <= grids + tables + blocks


# --- streams and CUDA graphs ----------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """A simulated GPU: its current stream, and whether that is being captured."""

    class Gpu:
        stream, capturing = 0, False

    monkeypatch.setattr(caches, 'current_stream', lambda _: Gpu.stream)
    monkeypatch.setattr(caches, 'capturing', lambda: Gpu.capturing)
    monkeypatch.setattr(caches, '_captured', [])
    return Gpu


def numbers(maxsize=2):
    """A cached function that returns a new tensor of its argument each time that it is called."""
    return cache_tensors(maxsize)(lambda x, _: torch.tensor(x))


def test_a_result_belongs_to_a_stream(gpu):
    number = numbers()
    first = number(1, CPU)
    gpu.stream = 7
    second = number(1, CPU)
    assert second is not first
    assert number(1, CPU) is second
    gpu.stream = 0
    assert number(1, CPU) is first


def test_a_capture_reads_what_the_warm_up_made_on_another_stream(gpu):
    number = numbers()
    warm = number(1, CPU)
    gpu.stream, gpu.capturing = 7, True
    assert number(1, CPU) is warm


def test_what_is_made_in_a_capture_is_not_cached(gpu):
    number = numbers()
    gpu.capturing = True
    captured = number(1, CPU)
    gpu.capturing = False
    assert number(1, CPU) is not captured


def test_what_a_graph_reads_is_never_freed(gpu):
    number = numbers()
    alive = [weakref.ref(number(x, CPU)) for x in (1, 2)]
    gpu.capturing = True
    number(2, CPU), number(2, CPU)
    gpu.capturing = False
    for x in (3, 4, 5):
        number(x, CPU)
    gc.collect()
    assert [reference() is not None for reference in alive] == [False, True]
    assert len(caches._captured) == 1
