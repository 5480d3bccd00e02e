"""The fast twin equals the plain definition, and keeps its promises about memory and hooks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers import fused_attention
from swinv2_backbone.layers.dispatch import linear_gelu, use_fused_implementation
from swinv2_backbone.layers.fused_attention import attend
from swinv2_backbone.layers.windows import WindowGrid
from tests.helpers.models import SMALL_ARCH, randomize_parameters

# Whole windows; pads on one axis, on both; windows larger than the map; not square.
CASES = [((64, 64), 8), ((100, 64), 8), ((100, 72), (5, 7)), ((33, 47), 16), ((92, 200), 4)]


def run(model, image):
    """Maps and, by name, gradients (of the image, too)."""
    image = image.clone().requires_grad_()
    maps = model(image)
    model.zero_grad()
    torch.manual_seed(1)
    sum((out * torch.randn_like(out)).sum() for out in maps).backward()
    return maps, {
        'image': image.grad,
        **{name: p.grad.clone() for name, p in model.named_parameters()},
    }


def both(monkeypatch, model, image):
    results = []
    for name in ('plain', 'fast'):
        monkeypatch.setenv('SWINV2_ATTENTION', name)
        results.append(run(model, image))
    return results


def largest_relative_error(got, wanted):
    return max(
        ((got[name] - value).norm() / value.norm()).item()
        for name, value in wanted.items()
        if value.any()
    )


@pytest.mark.parametrize(('size', 'window'), CASES, ids=str)
@pytest.mark.parametrize(
    ('dtype', 'maps_within', 'gradients_within'),
    [(torch.float32, 2e-5, 1e-4), (torch.float64, 1e-12, 1e-11)],
)
def test_maps_and_gradients_equal_the_plain_path(
    monkeypatch, small, size, window, dtype, maps_within, gradients_within
):
    model = small(window_size=window).to(dtype)
    image = torch.randn(2, 3, *size, dtype=dtype)
    (plain, plain_gradients), (fast, fast_gradients) = both(monkeypatch, model, image)
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=maps_within)
    assert largest_relative_error(fast_gradients, plain_gradients) <= gradients_within
    with torch.no_grad():
        for ours, theirs in zip(model(image), plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=maps_within)


def test_heads_above_the_clamp(monkeypatch):
    model = randomize_parameters(
        SwinTransformerV2(SMALL_ARCH, drop_path_rate=0.0), above_clamp=True
    ).double()
    (plain, wanted), (fast, got) = both(monkeypatch, model, torch.randn(1, 3, 100, 72).double())
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    assert largest_relative_error(got, wanted) <= 1e-10


def test_gradients_equal_finite_differences():
    grid = WindowGrid.for_map((5, 4), (3, 3), shifted=True)
    inputs = (torch.randn(20, 3, 2, 4), 5 + torch.rand(2, 1, 1), torch.randn(2, 9, 9))
    inputs = [x.double().requires_grad_() for x in inputs]
    for at_once in (None, 1):
        assert torch.autograd.gradcheck(lambda *args: attend(*args, grid, at_once), inputs)  # noqa: B023


def test_second_derivatives_are_refused():
    grid = WindowGrid.for_map((2, 2), (2, 2), shifted=False)
    qkv = torch.randn(4, 3, 1, 2, requires_grad=True)
    out = attend(qkv, torch.ones(1, 1, 1), torch.zeros(1, 4, 4), grid)
    [gradient] = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match='autograd'):
        gradient.sum().backward()


# --- sequential self-attention --------------------------------------------------------------------


@pytest.mark.parametrize('training', [False, True])
def test_windows_at_once_change_nothing(small, training):
    image = torch.randn(2, 3, 100, 136)
    wanted_maps, wanted = run(small().train(training), image)
    for at_once in (1, 3):
        maps, gradients = run(small(windows_at_once=at_once).train(training), image)
        for ours, theirs in zip(maps, wanted_maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert largest_relative_error(gradients, wanted) <= 1e-5


@pytest.mark.parametrize('at_once', [1, 5, None])
def test_no_more_windows_in_flight_than_asked_for(monkeypatch, small, at_once):
    forward, backward = [], []
    sdpa, ours = fused_attention.F.scaled_dot_product_attention, fused_attention._windows_backward
    monkeypatch.setattr(
        fused_attention.F,
        'scaled_dot_product_attention',
        lambda q, *args, **kwargs: forward.append(len(q)) or sdpa(q, *args, **kwargs),
    )
    monkeypatch.setattr(
        fused_attention,
        '_windows_backward',
        lambda qkv, *args: backward.append(len(qkv)) or ours(qkv, *args),
    )
    run(small(windows_at_once=at_once), torch.randn(1, 3, 192, 192))
    assert sum(forward) == sum(backward) == 2 * (36 + 9 + 4 + 1)  # 48 / 8 = 6 windows a side, ...
    if at_once:
        assert max(forward + backward) == at_once
    else:
        assert max(forward) == 32  # of 64 tokens each, 2048 together


def test_checkpointing_composes(small):
    image = torch.randn(2, 3, 100, 72)
    _, wanted = run(small().train(), image)
    _, got = run(small(with_cp=True, windows_at_once=2).train(), image)
    assert largest_relative_error(got, wanted) <= 1e-5


# --- memory ---------------------------------------------------------------------------------------


def test_nothing_of_the_size_of_the_logits_is_kept(monkeypatch):
    model = randomize_parameters(
        SwinTransformerV2(SMALL_ARCH, window_size=16, drop_path_rate=0.0)
    ).train()
    image = torch.randn(1, 3, 256, 256)
    logits = 64 * 64 * 256  # stage 0: one head, 4096 queries, 256 keys each
    largest = {}
    for name in ('plain', 'fast'):
        monkeypatch.setenv('SWINV2_ATTENTION', name)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(x.numel()) or x, lambda x: x
        ):
            model(image)
        largest[name] = max(kept)
    assert largest['plain'] == logits
    assert largest['fast'] < logits / 2


# --- half precision -------------------------------------------------------------------------------


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_is_as_near_float32_as_the_plain_path(monkeypatch, dtype, with_cp):
    model = randomize_parameters(
        SwinTransformerV2(SMALL_ARCH, drop_path_rate=0.0, with_cp=with_cp)
    ).train()
    image = torch.randn(2, 3, 100, 72)
    wanted_maps, wanted = run(model, image)
    with torch.autocast('cpu', dtype):
        results = both(monkeypatch, model, image)
    for name, value in results[1][1].items():
        assert value.isfinite().all(), name
    for i, theirs in enumerate(wanted_maps):
        plain, fast = ((maps[i] - theirs).norm() for maps, _ in results)
        assert fast <= 1.3 * plain
    for name, theirs in wanted.items():
        # A sum of terms that cancel, as for logit_scale, is off by chance: hence the last term.
        plain, fast = ((gradients[name] - theirs).norm() for _, gradients in results)
        assert fast <= 2 * plain + 20 * torch.finfo(dtype).eps * theirs.norm(), name


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_as_exact_in_half_precision_as_the_plain_path(monkeypatch, small, dtype):
    image = torch.randn(1, 3, 200, 200)
    with torch.no_grad():
        wanted = small()(image)
        errors = []
        for name in ('plain', 'fast'):
            monkeypatch.setenv('SWINV2_ATTENTION', name)
            maps = small().to(dtype)(image.to(dtype))
            errors.append(
                sum(
                    ((ours.float() - theirs).norm() / theirs.norm()).item()
                    for ours, theirs in zip(maps, wanted, strict=True)
                )
            )
    assert errors[1] <= 1.3 * errors[0], errors


# --- which path -----------------------------------------------------------------------------------


def test_the_variable_picks_the_path(monkeypatch, small):
    calls = []
    monkeypatch.setattr(fused_attention, '_attend', lambda qkv, *_: calls.append(1) or qkv[:, 0])
    monkeypatch.setenv('SWINV2_ATTENTION', 'plain')
    with torch.no_grad():
        small()(torch.randn(1, 3, 32, 32))
        assert not calls
        monkeypatch.delenv('SWINV2_ATTENTION')
        small()(torch.randn(1, 3, 32, 32))
    assert calls
    monkeypatch.setenv('SWINV2_ATTENTION', 'flash')
    with pytest.raises(ValueError, match="SWINV2_ATTENTION: got 'flash', allowed: 'fast' or 'plai"):
        use_fused_implementation()


@pytest.mark.parametrize('training', [False, True])
def test_the_fast_kernel_is_taken(small, training):
    model, image = small().train(training), torch.randn(1, 3, 100, 72)
    with torch.set_grad_enabled(training), torch.profiler.profile() as profile:
        model(image)
    called = {event.key for event in profile.key_averages()}
    assert 'aten::_scaled_dot_product_flash_attention_for_cpu' in called
    assert 'aten::_scaled_dot_product_attention_math' not in called


def test_dropped_attention_weights_take_the_plain_path(monkeypatch, small):
    monkeypatch.setattr(fused_attention, '_attend', lambda *_: pytest.fail('weights not dropped'))
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


def test_pieces_equal_the_whole(monkeypatch, small):
    model, image = small(), torch.randn(2, 3, 200, 264)
    with torch.no_grad():
        pieces = model(image)
        monkeypatch.setattr('swinv2_backbone.layers.blocks.TOKENS_IN_CACHE', 10**9)
        for ours, theirs in zip(pieces, model(image), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize('change', ['', 'tanh', 'relu', 'subclass', 'hook', 'double', 'gradient'])
def test_linear_gelu_is_what_the_modules_are(monkeypatch, change):
    linear, act, x = nn.Linear(5, 7), nn.GELU(), 3 * torch.randn(2, 3, 5)
    fused = []
    monkeypatch.setattr(
        torch.ops.mkldnn, '_linear_pointwise', lambda x, w, b, *_: fused.append(1) or act(linear(x))
    )
    if change == 'tanh':
        act = nn.GELU(approximate='tanh')
    elif change == 'relu':
        act = nn.ReLU()
    elif change == 'subclass':  # as adapters do
        linear = type('Adapted', (nn.Linear,), {})(5, 7)
    elif change == 'hook':
        linear.register_forward_hook(lambda *_: None)
    elif change == 'double':
        linear, x = linear.double(), x.double()
    with torch.set_grad_enabled(change == 'gradient'):
        torch.testing.assert_close(linear_gelu(x, linear, act), act(linear(x)))
    assert len(fused) == (not change)


def test_fused_gelu_is_exact():
    linear, act, x = nn.Linear(96, 384), nn.GELU(), 3 * torch.randn(500, 96)
    with torch.no_grad():
        torch.testing.assert_close(linear_gelu(x, linear, act), act(linear(x)), rtol=0, atol=2e-6)


def test_a_torch_without_the_operators_runs_the_plain_definition():
    code = """
import mmengine.model  # torch.distributed, which it imports, is to find the function
import torch
del torch.library.custom_op
from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers import dispatch
assert not dispatch.use_fused_implementation()
model = SwinTransformerV2(dict(embed_dims=8, depths=(2, 1, 1, 1), num_heads=(1,) * 4))
sum(out.sum() for out in model(torch.rand(1, 3, 64, 64))).backward()
with torch.no_grad():
    print(len(model.eval()(torch.rand(1, 3, 64, 64))))
"""
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert result.stdout.strip() == '4', result.stderr
