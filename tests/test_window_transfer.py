"""Any window at run time: exact, without a trace, and right at every size."""

import copy
import os
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.arguments import parse_windows
from swinv2_backbone.layers import fused_attention
from swinv2_backbone.layers import windows as windows_module
from swinv2_backbone.layers.windows import WindowGroup
from tests.helpers.dense_reference import dense_forward
from tests.helpers.models import SMALL_ARCH, randomize_parameters

WINDOWS = [16, 1, 24, (4, 12), [8, (3, 5), 16, 7]]


def assert_equal(ours, theirs):
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


def test_touches_no_weights(small):
    model = small()
    parameters, state = list(model.parameters()), copy.deepcopy(model.state_dict())
    model.set_window_size(12)
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    assert model.state_dict()._metadata == state._metadata


def test_the_unit_of_the_bias_stays(small):
    """Trained from scratch at window 8, a model keeps 8 as its unit at any other."""
    scratch, given = small(pretrained_window_sizes=None), small(pretrained_window_sizes=8)
    image = torch.randn(1, 3, 128, 64)
    for model in (scratch, given):
        model.set_window_size(16)
    assert_equal(scratch(image), given(image))


def test_for_a_while(small):
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


def test_fewer_stages(small):
    model = small(out_indices=(0, 1))
    model.set_window_size([4, 6, 2, 2])
    assert model.window_size == ((4, 4), (6, 6))
    with model.window_size_as(3):
        assert model.window_size == ((3, 3),) * 2
    assert model.window_size == ((4, 4), (6, 6))


@pytest.mark.parametrize(
    ('window', 'kind', 'message'),
    [
        (0, ValueError, 'window_size: got 0, allowed: an integer of at least 1'),
        ([4, 6, 2], ValueError, r'window_size: got \[4, 6, 2\], 3 entries, allowed: an integer'),
        ('16', TypeError, "window_size: got '16'"),
        ([8, 8, 8, 0], ValueError, r'window_size\[3\]: got 0, allowed'),
    ],
)
def test_a_wrong_window_changes_nothing(small, window, kind, message):
    model = small()
    with pytest.raises(kind, match=message):
        model.set_window_size(window)
    with pytest.raises(kind, match=message), model.window_size_as(window):
        pass
    assert model.window_size == ((8, 8),) * 4


def test_gradient_checkpoints_recompute_at_the_window_of_their_forward(small):
    image = torch.randn(1, 3, 64, 64)
    grads = []
    for with_cp in (False, True):
        model = small(with_cp=with_cp).train()
        with model.window_size_as((4, 6)):
            loss = sum(out.square().mean() for out in model(image))
        loss.backward()  # When the window is 8 again.
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-7)


def test_a_compiled_model_notices():
    torch._dynamo.reset()
    counters.clear()
    model = randomize_parameters(
        SwinTransformerV2(arch={**SMALL_ARCH, 'depths': (2, 1, 1, 1)})
    ).eval()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        for window in (8, 6, 8, 6):
            model.set_window_size(window)
            for ours, theirs in zip(compiled(image), model(image), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
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
def test_no_trace_of_a_detour(small):
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
def test_pictures_of_a_batch_do_not_see_each_other(small, window):
    model, images = small(window_size=window), torch.randn(3, 3, 72, 104)
    together = model(images)
    images[1] = float('nan')
    for before, after in zip(together, model(images), strict=True):
        torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=0, atol=1e-6)
        assert after[1].isnan().all()


@pytest.mark.parametrize('window', [5, (3, 7), 16], ids=str)
def test_pads_of_the_plain_definition_reach_no_token(small, monkeypatch, window):
    monkeypatch.setenv('SWINV2_ATTENTION', 'plain')
    model, image = small(window_size=window), torch.randn(2, 3, 100, 136)
    before, padded = model(image), []

    def filled(x, pad, *_):
        padded.append(pad)
        return F.pad(x, pad, value=1e4)

    # Only what fills windows: the zeros that patch embed and patch merging add are of the model.
    monkeypatch.setattr(windows_module, 'F', mock.Mock(pad=filled))
    for ours, theirs in zip(model(image), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert padded


@pytest.mark.parametrize('window', [5, (3, 7), 16], ids=str)
def test_pads_of_the_fast_path_reach_no_token(small, monkeypatch, window):
    """Instead of a neighbor, a padded position takes any other token: it makes no difference."""
    monkeypatch.setenv('SWINV2_ATTENTION', 'fast')
    model, image = small(window_size=window), torch.randn(2, 3, 100, 136, requires_grad=True)
    scrambled = []

    def gradients():
        maps = model(image)
        return [*maps, *torch.autograd.grad(sum(out.square().sum() for out in maps), image)]

    def kinds(qkv, *grid):
        found = original(qkv, *grid)
        for index, kind in enumerate(found):
            if kind.real is not None:
                tokens = torch.randint(len(qkv), kind.tokens.shape)
                tokens[:, kind.real] = kind.tokens[:, kind.real]
                scrambled.append(not torch.equal(tokens, kind.tokens))
                found = (
                    *found[:index],
                    WindowGroup(tokens, kind.visible, kind.real),
                    *found[index + 1 :],
                )
        return found

    before = gradients()
    original = fused_attention._kinds
    monkeypatch.setattr(fused_attention, '_kinds', kinds)
    # No gradients in the first pass: the two ways into the fast path.
    with torch.no_grad():
        for ours, theirs in zip(model(image), before, strict=False):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for ours, theirs in zip(gradients(), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
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
    implementation=st.sampled_from(['fast', 'plain']),
)
def agrees_with_the_dense_reference(size, batch, windows, pretrained, seed, implementation):
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
    expected = dense_forward(
        model.state_dict(),
        image,
        SMALL_ARCH['depths'],
        SMALL_ARCH['num_heads'],
        windows,
        pretrained,
    )
    with torch.no_grad(), mock.patch.dict(os.environ, SWINV2_ATTENTION=implementation):
        single, double = model(image), model.double()(image.double())
    for ours, precise, theirs in zip(single, double, expected, strict=True):
        largest = theirs.abs().max().item()  # Of some units: what is left to float32 is rounding.
        assert (ours - theirs).abs().max().item() <= 2e-5 * max(1, largest)
        assert (precise - theirs).abs().max().item() <= 1e-11


def test_any_window_at_any_size():
    settings(max_examples=300, deadline=None, derandomize=True)(agrees_with_the_dense_reference)()


@pytest.mark.slow
def test_any_window_at_any_size_thousands_of_times():
    settings(max_examples=5000, deadline=None)(agrees_with_the_dense_reference)()
