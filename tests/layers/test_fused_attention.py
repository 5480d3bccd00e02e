"""The fused attention equals the reference attention, with bounded memory."""

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers import attention, blocks, sdpa_attention
from swinv2_backbone.layers.fused_attention import attend, use_fused_attention
from swinv2_backbone.layers.windows import WindowGrid
from tests.helpers.models import SMALL_ARCH, randomize_parameters
from tests.helpers.tolerance import assert_as_accurate, assert_equal_to_rounding

# Whole windows; padding along one axis, along both; windows larger than the map; not square.
CASES = [((64, 64), 8), ((100, 64), 8), ((100, 72), (5, 7)), ((33, 47), 16), ((92, 200), 4)]


def run(model, image, autocast=None):
    """Maps, and gradients by name (that of the image, too)."""
    image = image.clone().requires_grad_()
    model.zero_grad()
    with torch.autocast('cpu', autocast, enabled=autocast is not None):
        maps = model(image)
    torch.manual_seed(1)
    sum((out * torch.randn(out.shape).to(out)).sum() for out in maps).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return maps, {'image': image.grad, **gradients}


def with_both(monkeypatch, function, *inputs):
    """Results of a function with the reference attention and with the fused attention."""
    results = []
    for name in ('reference', 'fused'):
        monkeypatch.setenv('SWINV2_ATTENTION', name)
        results.append(function(*inputs))
    return results


@pytest.mark.parametrize(('size', 'window'), CASES, ids=str)
def test_maps_and_gradients_equal_the_reference(monkeypatch, small, size, window):
    model, image = small(window_size=window), torch.randn(2, 3, *size)
    reference, fused = with_both(monkeypatch, run, model, image)
    exact, fused_exact = with_both(monkeypatch, run, model.double(), image.double())
    with torch.no_grad():
        without_gradients = model(image.double())
        single = model.float()(image)
    assert_equal_to_rounding(fused_exact[0], exact[0])
    assert_equal_to_rounding(fused_exact[1], exact[1])
    assert_equal_to_rounding(without_gradients, exact[0])
    for ours in (fused[0], single):
        assert_as_accurate(ours, reference[0], exact[0])
    assert_as_accurate(fused[1], reference[1], exact[1])


def test_scales_above_the_clamp_equal_the_reference(monkeypatch):
    model = randomize_parameters(
        SwinTransformerV2(SMALL_ARCH, drop_path_rate=0.0), above_clamp=True
    ).double()
    reference, fused = with_both(monkeypatch, run, model, torch.randn(1, 3, 100, 72).double())
    assert_equal_to_rounding(fused[0], reference[0])
    assert_equal_to_rounding(fused[1], reference[1])


def test_gradients_equal_finite_differences():
    grid = WindowGrid.for_map((5, 4), (3, 3), shifted=True)
    inputs = (torch.randn(20, 3, 2, 4), 5 + torch.rand(2, 1, 1), torch.randn(2, 9, 9))
    inputs = [x.double().requires_grad_() for x in inputs]
    for at_once in (None, 1):
        assert torch.autograd.gradcheck(lambda *args: attend(*args, grid, at_once), inputs)  # noqa: B023


# --- sequential self-attention --------------------------------------------------------------------


@pytest.mark.parametrize('training', [False, True])
def test_windows_at_once_change_nothing(small, training):
    image = torch.randn(2, 3, 100, 136).double()
    expected_maps, expected = run(small().double().train(training), image)
    for at_once in (1, 3):
        maps, gradients = run(small(windows_at_once=at_once).double().train(training), image)
        assert_equal_to_rounding(maps, expected_maps)
        assert_equal_to_rounding(gradients, expected)


@pytest.mark.parametrize('at_once', [1, 5, None])
def test_windows_at_once_bounds_the_windows(monkeypatch, small, at_once):
    forward, backward = [], []
    sdpa, ours = sdpa_attention.F.scaled_dot_product_attention, sdpa_attention._windows_backward
    monkeypatch.setattr(
        sdpa_attention.F,
        'scaled_dot_product_attention',
        lambda q, *args, **kwargs: forward.append(len(q)) or sdpa(q, *args, **kwargs),
    )
    monkeypatch.setattr(
        sdpa_attention,
        '_windows_backward',
        lambda qkv, *args: backward.append(len(qkv)) or ours(qkv, *args),
    )
    run(small(windows_at_once=at_once), torch.randn(1, 3, 192, 192))
    assert sum(forward) == sum(backward) == 2 * (36 + 9 + 4 + 1)  # 48 / 8 = 6 windows a side, ...
    if at_once:
        assert max(forward + backward) == at_once
    else:
        assert max(forward) == 32  # of 64 tokens each, 2048 together


def test_checkpointing_changes_nothing(small):
    image = torch.randn(2, 3, 100, 72).double()
    _, expected = run(small().double().train(), image)
    _, got = run(small(with_cp=True, windows_at_once=2).double().train(), image)
    assert_equal_to_rounding(got, expected)


# --- memory ---------------------------------------------------------------------------------------


def test_nothing_of_the_size_of_the_logits_is_kept(monkeypatch):
    model = randomize_parameters(
        SwinTransformerV2(SMALL_ARCH, window_size=16, drop_path_rate=0.0)
    ).train()
    image = torch.randn(1, 3, 384, 384)
    logits = 96 * 96 * 256  # stage 0: one head, 9216 queries, 256 keys each
    largest = {}
    for name in ('reference', 'fused'):
        monkeypatch.setenv('SWINV2_ATTENTION', name)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x
        ):
            model(image)
        largest[name] = max(kept)
    assert largest['reference'] == logits
    assert largest['fused'] < logits / 2


# --- half precision -------------------------------------------------------------------------------


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_is_as_accurate_as_the_reference(monkeypatch, small, dtype, with_cp):
    model, image = small(with_cp=with_cp).train(), torch.randn(2, 3, 100, 72)
    reference, fused = with_both(monkeypatch, run, model, image, dtype)
    monkeypatch.setenv('SWINV2_ATTENTION', 'reference')
    exact = run(model.double(), image.double())
    for name, gradient in fused[1].items():
        assert gradient.isfinite().all(), name
    assert_as_accurate(fused[0], reference[0], exact[0])
    assert_as_accurate(fused[1], reference[1], exact[1])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_as_accurate_as_the_reference(monkeypatch, small, dtype):
    model, image = small().to(dtype), torch.randn(1, 3, 200, 200).to(dtype)
    with torch.no_grad():
        reference, fused = with_both(monkeypatch, model, image)
        exact = model.double()(image.double())
    assert all(out.dtype == dtype for out in fused)
    assert_as_accurate(fused, reference, exact)


# --- which implementation ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('value', 'fused'),
    [('fused', True), ('fast', True), (None, True), ('reference', False), ('plain', False)],
)
def test_the_variable_chooses_the_implementation(monkeypatch, small, value, fused):
    monkeypatch.delenv('SWINV2_ATTENTION', raising=False)
    if value is not None:
        monkeypatch.setenv('SWINV2_ATTENTION', value)
    with torch.no_grad(), torch.profiler.profile() as profile:
        small()(torch.randn(1, 3, 32, 32))
    called = {event.key for event in profile.key_averages()}
    assert ('swinv2_backbone::attend' in called) == fused


def test_another_value_of_the_variable_is_refused(monkeypatch):
    monkeypatch.setenv('SWINV2_ATTENTION', 'flash')
    message = "SWINV2_ATTENTION: got 'flash', allowed: 'fused', 'triton', 'sdpa' or 'reference'"
    with pytest.raises(ValueError, match=message):
        use_fused_attention()


@pytest.mark.parametrize('training', [False, True])
def test_the_flash_kernel_runs(small, training):
    model, image = small().train(training), torch.randn(1, 3, 100, 72)
    with torch.set_grad_enabled(training), torch.profiler.profile() as profile:
        model(image)
    called = {event.key for event in profile.key_averages()}
    assert 'aten::_scaled_dot_product_flash_attention_for_cpu' in called
    assert 'aten::_scaled_dot_product_attention_math' not in called


def test_attention_dropout_uses_the_reference(monkeypatch, small):
    monkeypatch.setattr(attention, 'attend', lambda *_: pytest.fail('weights not dropped'))
    model, image = small(attn_drop_rate=0.5).train(), torch.randn(1, 3, 32, 32)
    first, second = model(image), model(image)
    assert not torch.equal(first[0], second[0])


def test_hooks_see_whole_maps(small):
    seen, model = [], small()
    model.layers[0].blocks[0].mlp.register_forward_hook(lambda *args: seen.append(args[2].shape))
    model.layers[0].blocks[1].mlp.act.register_forward_hook(
        lambda *args: seen.append(args[2].shape)
    )
    with torch.no_grad():
        model(torch.randn(1, 3, 256, 256))
    assert seen == [(1, 64, 64, 16), (1, 64, 64, 64)]


def test_chunks_equal_the_whole(monkeypatch, small):
    model, image = small().double(), torch.randn(2, 3, 200, 264).double()
    chunks = []
    add_branches = blocks.SwinTransformerBlock._add_branches
    monkeypatch.setattr(
        blocks.SwinTransformerBlock,
        '_add_branches',
        lambda self, x, attended: chunks.append(len(x)) or add_branches(self, x, attended),
    )
    with torch.no_grad():
        in_chunks = model(image)
        assert chunks[:5] == [2048, 2048, 2048, 256, 200]  # 2 x 50 x 66 tokens
        monkeypatch.setattr(blocks, 'TOKENS_IN_CACHE', 10**9)
        assert_equal_to_rounding(in_chunks, model(image))
