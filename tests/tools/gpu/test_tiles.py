"""Which tiles are tried, and how they are compiled before they are timed."""

import json
import types

import pytest

triton = pytest.importorskip('triton')

from triton.backends.compiler import GPUTarget

from swinv2_backbone.layers.triton_attention import Tile, find_tile, plan
from tests.helpers.triton_interpreter import INTERPRETING
from tools.gpu import tiles
from tools.gpu.budget import Budget

SHAPE = (8, 4, 1, 16, 1)


@pytest.mark.parametrize('tokens', [49, 64, 256])
def test_candidates_are_others_near_the_tile_of_the_package(tokens):
    for kernel, ours in plan(tokens, 32).items():
        found = list(tiles.candidates(kernel, tokens, 32))
        assert len(found) == len(set(found)) > 0
        assert ours not in found
        distances = [tiles._distance(tile, ours) for tile in found]
        assert distances == sorted(distances)
        assert all(max(tile.queries, tile.keys) <= 2 * tokens for tile in found)


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """Triton believes in an H100: it compiles for it, and would fail to launch."""
    driver = types.SimpleNamespace(
        get_current_target=lambda: GPUTarget('cuda', 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    monkeypatch.setattr(triton.runtime.driver, '_active', driver)
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    return tmp_path


@pytest.mark.skipif(INTERPRETING, reason='an interpreted kernel cannot be compiled')
def test_compiling_fills_the_cache_and_launches_nothing(gpu):
    tiles.compile_tile(SHAPE, 'forward', Tile(32, 16, 1, 1))
    (compiled,) = gpu.rglob('*.cubin')
    assert compiled.name == 'forward.cubin'
    tiles.compile_tile(SHAPE, 'forward', Tile(32, 16, 1, 1))
    assert len(list(gpu.rglob('*.cubin'))) == 1
    assert find_tile('forward', 16, 16) != Tile(32, 16, 1, 1), 'the table is as it was'


def test_best_tile_is_printed_as_an_entry(monkeypatch, capsys):
    seconds = {None: 3.0, Tile(16, 16, 1, 3): 2.0, Tile(16, 16, 1, 1): 1.0}
    broken = Tile(16, 16, 2, 1)

    def measure(self, kernel, tile, rounds):
        if tile == broken:
            raise RuntimeError('out of resource: shared memory')
        return seconds[tile]

    monkeypatch.setattr(tiles.Attention, 'seconds', measure)
    others = [broken, *list(seconds)[1:]]
    tiles.try_tiles(SHAPE, 'forward', 'cpu', Budget(60), others)
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    _, failed, first, second, best = lines
    assert (failed['seconds'], failed['note']) == (None, 'RuntimeError')
    assert (first['note'], second['note']) == ('0.67', '0.33')
    assert best['configuration'] == f"TILES['forward']: (16, 16, {Tile(16, 16, 1, 1)})"
    assert best['seconds'] == 1.0
