"""The arithmetic of the roofline model."""

import pytest

from tools.benchmarking.cases import Case
from tools.gpu.roofline import GPUS, Gpu, KernelCost, Stage, blocks, bound, ideal

GPU = Gpu('round numbers', 90, flops=1e12, bandwidth=1e9, issue=1e9, source='none')
STAGE = Stage(tokens=2 * 64, windows=2, heads=3, width=32, positions=64)


def cost(**changes):
    fields = dict(tile=(64, 64), instructions=0, warps=4, products=0, channel_bytes=0)
    return KernelCost(**fields | changes)


def test_each_bound():
    seconds = cost(instructions=500, products=2, channel_bytes=8).seconds(GPU, STAGE)
    tiles = 2 * 3  # One per window and head.
    assert seconds == {
        'tensor cores': pytest.approx(tiles * 2 * 2 * 64 * 64 * 32 / 1e12),
        'memory': pytest.approx(128 * 3 * 32 * 8 / 1e9),
        'instructions': pytest.approx(tiles * 500 * 4 / 1e9),
    }


def test_tiles_are_whole():
    """A window of 7 x 7 takes as long as one of 8 x 8, in tiles of 64."""
    smaller = STAGE._replace(positions=49)
    each = cost(instructions=500, products=2)
    assert each.seconds(GPU, smaller) == each.seconds(GPU, STAGE)
    four = cost(instructions=500, tile=(32, 32)).seconds(GPU, STAGE)['instructions']
    assert four == pytest.approx(4 * each.seconds(GPU, STAGE)['instructions'])


def test_instructions_per_logit_are_of_a_thread():
    assert cost(instructions=640).instructions_per_logit == 640 * 4 * 32 / 64**2


def test_kernels_add_up_each_by_its_own_limit():
    by_memory, by_issue = cost(channel_bytes=1000), cost(instructions=10**9)
    total, limit = bound([by_memory, by_issue], GPU, STAGE)
    alone = [bound([each], GPU, STAGE)[0] for each in (by_memory, by_issue)]
    assert total == pytest.approx(sum(alone))
    assert limit == 'instructions'
    assert bound([by_memory], GPU, STAGE)[1] == 'memory'


def test_ideal_is_the_slower_of_products_and_bytes():
    gpu = Gpu('slow memory', 90, flops=1e15, bandwidth=1e6, issue=1.0, source='none')
    assert ideal(gpu, STAGE, 2, 8) == pytest.approx(128 * 96 * 8 / 1e6)
    assert ideal(GPU, STAGE, 2000, 0) == pytest.approx(2 * 2000 * 128 * 64 * 96 / 1e12)


def test_blocks_of_the_network():
    stages = list(blocks(Case('train', 512, 512, 16, 8, 'bf16')))
    assert len(stages) == 12
    assert stages[0] == Stage(8 * 128**2, 8 * 64, 3, 32, 256)
    assert stages[-1] == Stage(8 * 16**2, 8, 24, 32, 256)
    # Windows shrink to small maps, and a map that is no multiple of them is padded.
    small = list(blocks(Case('infer', 256, 320, 16, 1, 'bf16')))
    assert small[-1] == Stage(80, 1, 24, 32, 80)
    assert small[2].windows == 2 * 3


def test_rates_name_their_source():
    assert {gpu.capability for gpu in GPUS} == {80, 90, 100}
    assert all(gpu.source for gpu in GPUS)
