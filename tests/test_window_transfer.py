"""Any window at run time: as if built with it, reversible, and right at every size."""

import copy
import os
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.arguments import parse_windows
from swinv2_backbone.layers import sdpa_attention
from swinv2_backbone.layers.windows import WindowGroup
from tests.helpers.dense_reference import dense_forward
from tests.helpers.models import SMALL_ARCH, needs_compile, randomize_parameters
from tests.helpers.tolerance import assert_as_accurate, assert_equal_to_rounding

WINDOWS = [16, 1, 24, (4, 12), [8, (3, 5), 16, 7]]


def assert_equal(ours, theirs):
    """Bit for bit: the same kernels run on the same values."""
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


# --- set_window_size, window_size_as --------------------------------------------------------------


@pytest.mark.usefixtures('implementation')
@pytest.mark.parametrize('window', WINDOWS, ids=str)
def test_equals_a_model_built_with_that_window(small, window):
    model, built = small(window_size=8), small(window_size=window)
    for training in (False, True):
        image = torch.randn(2, 3, 100, 72)
        with torch.set_grad_enabled(training):
            model.set_window_size(8)
            before = model(image)  # Fills caches with what must not be used at another window.
            model.set_window_size(window)
            after = model(image)
            assert_equal(after, built(image))
        assert not all(map(torch.equal, before, after))
    assert model.window_size == built.window_size == parse_windows('window', window)


def test_weights_stay(small):
    model = small()
    parameters, state = list(model.parameters()), copy.deepcopy(model.state_dict())
    model.set_window_size(12)
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    assert model.state_dict()._metadata == state._metadata


def test_the_pretrained_window_stays(small):
    """A model that was built from scratch at window 8 has pretrained window 8 at any other."""
    scratch, given = small(pretrained_window_sizes=None), small(pretrained_window_sizes=8)
    image = torch.randn(1, 3, 128, 64)
    for model in (scratch, given):
        model.set_window_size(16)
    assert_equal(scratch(image), given(image))


def test_window_size_as_restores_the_windows(small):
    model, other = small(window_size=[8, 8, (4, 6), 2]), small(window_size=16)
    image = torch.randn(1, 3, 96, 128)
    before, windows = model(image), model.window_size
    with model.window_size_as(16) as same:
        assert same is model
        assert_equal(model(image), other(image))
        with model.window_size_as((2, 3)):
            assert model.window_size == ((2, 3),) * 4
        assert model.window_size == ((16, 16),) * 4
    assert model.window_size == windows
    with pytest.raises(KeyboardInterrupt), model.window_size_as(4):
        raise KeyboardInterrupt
    assert model.window_size == windows
    assert_equal(model(image), before)


def test_stages_that_were_not_built_are_left_out(small):
    model = small(out_indices=(0, 1))
    model.set_window_size([4, 6, 2, 2])
    assert model.window_size == ((4, 4), (6, 6))
    with model.window_size_as(3):
        assert model.window_size == ((3, 3),) * 2
    assert model.window_size == ((4, 4), (6, 6))


@pytest.mark.parametrize(
    ('window', 'error', 'message'),
    [
        (0, ValueError, 'window_size: got 0, allowed: an integer of at least 1'),
        ([4, 6, 2], ValueError, r'window_size: got \[4, 6, 2\], 3 entries, allowed: an integer'),
        ('16', TypeError, "window_size: got '16'"),
        ([8, 8, 8, 0], ValueError, r'window_size\[3\]: got 0, allowed'),
    ],
)
def test_a_wrong_window_changes_nothing(small, window, error, message):
    model = small()
    with pytest.raises(error, match=message):
        model.set_window_size(window)
    with pytest.raises(error, match=message), model.window_size_as(window):
        pass
    assert model.window_size == ((8, 8),) * 4


def test_gradient_checkpoints_recompute_at_the_window_of_their_forward(small):
    image = torch.randn(1, 3, 64, 64).double()
    grads = []
    for with_cp in (False, True):
        model = small(with_cp=with_cp).double().train()
        with model.window_size_as((4, 6)):
            loss = sum(out.square().mean() for out in model(image))
        loss.backward()  # While the window is 8 again.
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert_equal_to_rounding(grads[1], grads[0])


@needs_compile
def test_a_compiled_model_follows_the_window():
    torch._dynamo.reset()
    counters.clear()
    model = randomize_parameters(
        SwinTransformerV2(arch={**SMALL_ARCH, 'depths': (2, 1, 1, 1)}).double()
    ).eval()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    image = torch.randn(1, 3, 96, 96).double()
    with torch.no_grad():
        for window in (8, 6, 8, 6):
            model.set_window_size(window)
            assert_equal_to_rounding(compiled(image), model(image))
    assert counters['stats']['unique_graphs'] == 2


# --- what must hold at any window -----------------------------------------------------------------


@pytest.mark.usefixtures('implementation')
@pytest.mark.parametrize('size', [(64, 64), (33, 150), (100, 20)])
def test_a_window_larger_than_the_map_equals_one_of_its_size(small, size):
    model, image = small(), torch.randn(2, 3, *size)
    sides = [[-(-side // (4 * 2**i)) for side in size] for i in range(4)]
    for more in ((0, 5), (5, 0), (40, 40)):
        with model.window_size_as([(h + more[0], w + more[1]) for h, w in sides]):
            larger = model(image)
        with model.window_size_as([tuple(pair) for pair in sides]):
            assert_equal(larger, model(image))


@pytest.mark.usefixtures('implementation')
def test_other_windows_and_sizes_leave_no_trace(small):
    model, image = small(), torch.randn(2, 3, 72, 104)
    for training in (False, True):
        with torch.set_grad_enabled(training):
            before = model(image)
            for window in WINDOWS:
                with model.window_size_as(window):
                    model(torch.randn(1, 3, 48, 80))
                    model(image)
            for size in ((64, 64), (72, 104), (31, 200)):
                model(torch.randn(3, 3, *size))
            assert_equal(model(image), before)


@pytest.mark.usefixtures('implementation')
@pytest.mark.parametrize('window', [5, (3, 7)], ids=str)
def test_images_of_a_batch_are_independent(small, window):
    model, images = small(window_size=window).double(), torch.randn(3, 3, 72, 104).double()
    together = model(images)
    images[1] = float('nan')
    for before, after in zip(together, model(images), strict=True):
        assert_equal_to_rounding(after[[0, 2]], before[[0, 2]])
        assert after[1].isnan().all()


@pytest.mark.parametrize('window', [5, (3, 7), 16], ids=str)
def test_padded_positions_of_the_fused_attention_reach_no_token(small, monkeypatch, window):
    """With the indices of other tokens at the padded positions, all results are the same.

    (tests/regressions has the same for the reference attention.)
    """
    monkeypatch.setenv('SWINV2_ATTENTION', 'fused')
    model = small(window_size=window).double()
    image = torch.randn(2, 3, 100, 136).double().requires_grad_()
    scrambled = []

    def results():
        maps = model(image)
        with torch.no_grad():  # The other way into the fused attention.
            without_gradients = model(image)
        gradients = torch.autograd.grad(sum(out.square().sum() for out in maps), image)
        return [*maps, *without_gradients, *gradients]

    def scramble(group, count):
        if group.valid is None:
            return group
        tokens = torch.randint(count, group.tokens.shape)
        tokens[:, group.valid] = group.tokens[:, group.valid]
        scrambled.append(not torch.equal(tokens, group.tokens))
        return WindowGroup(tokens, group.attn_mask, group.valid)

    expected = results()
    groups_of = sdpa_attention._groups_of
    monkeypatch.setattr(
        sdpa_attention,
        '_groups_of',
        lambda qkv, *grid: tuple(scramble(group, len(qkv)) for group in groups_of(qkv, *grid)),
    )
    assert_equal_to_rounding(results(), expected)
    assert any(scrambled)


# --- against the dense reference, at random -------------------------------------------------------

side = st.integers(1, 20)
window_pairs = st.lists(st.tuples(side, side), min_size=4, max_size=4)


@given(
    size=st.tuples(st.integers(1, 97), st.integers(1, 97)),
    batch=st.integers(1, 3),
    windows=window_pairs,
    pretrained=window_pairs,
    seed=st.integers(0, 3),
    implementation=st.sampled_from(['fused', 'reference']),
)
def equals_the_dense_reference(size, batch, windows, pretrained, seed, implementation):
    model = randomize_parameters(
        SwinTransformerV2(
            arch=SMALL_ARCH,
            window_size=windows,
            drop_path_rate=0.0,
            pretrained_window_sizes=pretrained,
        ),
        seed,
    ).eval()
    image = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))
    exact, theirs = (
        dense_forward(
            model.state_dict(),
            image,
            SMALL_ARCH['depths'],
            SMALL_ARCH['num_heads'],
            windows,
            pretrained,
            dtype=dtype,
        )
        for dtype in (torch.float64, torch.float32)
    )
    with torch.no_grad(), mock.patch.dict(os.environ, SWINV2_ATTENTION=implementation):
        single, double = model(image), model.double()(image.double())
    assert_equal_to_rounding(double, exact)
    assert_as_accurate(single, theirs, exact)


def test_any_window_at_any_size():
    settings(max_examples=60, deadline=None, derandomize=True)(equals_the_dense_reference)()


@pytest.mark.slow
def test_any_window_at_any_size_thousands_of_times():
    settings(max_examples=5000, deadline=None)(equals_the_dense_reference)()
