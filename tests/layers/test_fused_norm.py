"""LayerNorm, drop path and residual addition in one kernel: the operator, and the block with it.

The kernels run in Triton's interpreter. It truncates to bfloat16 where a GPU rounds, so that bounds
here are whole units in the last place: eps, not eps / 2, times the largest value.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers import blocks, fused_norm, selection
from swinv2_backbone.layers.drop_path import DropPath
from swinv2_backbone.layers.fused_norm import add_normed, use_fused_norm
from tests.helpers.models import SMALL_ARCH, needs_compile, randomize_parameters
from tests.helpers.tolerance import assert_as_accurate, assert_equal_to_rounding
from tests.helpers.triton_interpreter import INTERPRETING, interpreted, run_in_the_interpreter

test_in_the_interpreter = run_in_the_interpreter(__file__)
HALF = torch.bfloat16, torch.float16
# The stream of a residual network under autocast is in float32, that of a model in half precision
# is in that; the others are for users who mix.
DTYPES = [(torch.float32, dtype) for dtype in HALF] + [(a, b) for a in HALF for b in HALF]
# One row in all; rows and channels that fill no tile; more tiles than programs; large channels.
SHAPES = [(1, 1, 1, 16), (2, 5, 7, 24), (3, 9, 11, 96), (2, 300, 40), (2, 3, 3, 768), (2, 3, 1544)]


def add_normed_by_modules(x, branch, weight, bias, draws, keep, eps):
    """By torch's modules, in float64."""
    normed = F.layer_norm(branch, weight.shape, weight, bias, eps)
    drop_path = DropPath(1 - keep).train(draws is not None)
    return x + drop_path(normed, draws)


def inputs_of(shape, x_dtype, branch_dtype, weight_dtype=torch.float32):
    x, branch = 3 * torch.randn(shape), 5 + 3 * torch.randn(shape)
    weight, bias = 1 + torch.randn(2, shape[-1])
    inputs = x.to(x_dtype), branch.to(branch_dtype), weight.to(weight_dtype), bias.to(weight_dtype)
    return [each.requires_grad_() for each in inputs]


def value_and_gradients(function, inputs, args, grad_out):
    out = function(*inputs, *args)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad_out.to(out.dtype))]


@pytest.fixture
def _poisoned():
    """Memory that is allocated holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@interpreted
@pytest.mark.usefixtures('_poisoned')
@pytest.mark.parametrize('drop', [False, True])
@pytest.mark.parametrize(('x_dtype', 'branch_dtype'), DTYPES, ids=str)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_value_and_gradients_equal_those_in_float64(shape, x_dtype, branch_dtype, drop):
    inputs = inputs_of(shape, x_dtype, branch_dtype, x_dtype)
    draws = torch.tensor([0.1, 0.9, 0.3])[: shape[0]] if drop else None
    args = draws, 0.6 if drop else 1.0, 1e-5
    grad_out = torch.randn(shape).to(torch.promote_types(x_dtype, branch_dtype))
    got = value_and_gradients(add_normed, inputs, args, grad_out)
    inputs64 = [each.detach().double().requires_grad_() for each in inputs]
    expected = value_and_gradients(add_normed_by_modules, inputs64, args, grad_out.double())

    dtypes = [grad_out.dtype, *(each.dtype for each in inputs)]
    # A sum of n terms is off by at most n u of their magnitudes: C terms of each row in the
    # statistics, all rows in the gradients of weight and bias. The branch's mean, 5 / 3 of its
    # deviation, and the division by the deviation multiply that by less than 8.
    terms = shape[-1] + torch.Size(shape[:-1]).numel()
    in_float32 = 8 * (terms + 16) * torch.finfo(torch.float32).eps / 2
    for ours, theirs, dtype in zip(got, expected, dtypes, strict=True):
        assert ours.dtype == dtype
        bound = (torch.finfo(dtype).eps + in_float32) * theirs.abs().max().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=bound)
    assert torch.equal(got[1], grad_out.to(x_dtype)), 'the gradient of a sum'


@interpreted
def test_a_branch_is_dropped_from_keep_on():
    x, branch, weight, bias = inputs_of((3, 4, 4, 32), torch.float32, torch.float16)
    draws = torch.tensor([0.0, 0.25, 0.75])
    with torch.no_grad():
        out = add_normed(x, branch, weight, bias, draws, 0.25)
        assert torch.equal(out[1:], x[1:])
        assert not torch.equal(out[0], x[0])
        assert torch.equal(add_normed(x, branch, weight, bias, draws, 0.0), x)


@interpreted
def test_layouts_that_are_not_contiguous():
    x, branch, weight, bias = inputs_of((2, 6, 4, 16), torch.float32, torch.bfloat16)
    draws = torch.rand(2, 2)
    expected = add_normed(x, branch, weight, bias, draws[:, 0].clone(), 0.5)
    strided = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in (x, branch)]
    out = add_normed(*strided, weight, bias, draws[:, 0], 0.5)
    assert torch.equal(out, expected)
    assert out.is_contiguous()
    grads = [torch.autograd.grad(each.sum(), branch)[0] for each in (out, expected)]
    assert torch.equal(*grads)


@interpreted
def test_second_derivatives():
    inputs = inputs_of((2, 3, 5, 24), torch.float32, torch.float16)
    direction = torch.randn(2, 3, 5, 24)

    def second(function, inputs):
        out = function(*inputs, torch.tensor([0.1, 0.9]), 0.6, 1e-5)
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        total = sum((each * direction.to(each).sum(0).sum(0)).sum() for each in first)
        return torch.autograd.grad(total, inputs)

    got = second(add_normed, inputs)
    inputs64 = [each.detach().double().requires_grad_() for each in inputs]
    expected = second(add_normed_by_modules, inputs64)
    # By operators of torch throughout, so that their own error is the measure.
    reference = second(fused_norm._reference, inputs)
    assert_as_accurate(got, reference, expected)
    x, branch, weight, bias = inputs
    out = add_normed(x, branch.detach(), weight.detach(), bias.detach())
    [first] = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    assert torch.equal(torch.autograd.grad(first.sum(), x)[0], torch.full_like(x, 2))


@interpreted
def test_the_operator_passes_opcheck():
    for x_dtype in (torch.float32, torch.bfloat16):
        inputs = inputs_of((2, 3, 5, 24), x_dtype, torch.bfloat16)
        args = *inputs, torch.tensor([0.1, 0.9]), 0.6, 1e-5
        # (The compiled gradients are summed in another order than those without a compiler.)
        found = torch.library.opcheck(fused_norm._add_normed_operator, args, rtol=2e-2, atol=2e-2)
        assert set(found.values()) == {'SUCCESS'}, found


# --- in the network -------------------------------------------------------------------------------


@pytest.fixture
def choose(monkeypatch):
    """A function that turns the fused norm on or off, whatever runs the attention."""
    monkeypatch.setattr(
        blocks, 'use_fused_norm', lambda *args: choice and use_fused_norm(*args), raising=True
    )
    monkeypatch.setattr(fused_norm, 'configured_implementation', lambda: 'triton')
    monkeypatch.setattr(fused_norm, 'triton_obstacle', lambda _: None if INTERPRETING else 'none')
    choice = True

    def choose(fused):
        nonlocal choice
        choice = fused

    return choose


def run(model, image, autocast=None):
    """Maps, and gradients by name."""
    model.zero_grad()
    torch.manual_seed(1)  # The same paths are dropped.
    with torch.autocast('cpu', autocast, enabled=autocast is not None):
        maps = model(image)
    sum((out * torch.randn(out.shape).to(out)).sum() for out in maps).backward()
    return maps, {name: p.grad.clone() for name, p in model.named_parameters()}


def calls_of(function):
    """Calls of the operator while a function runs, forward and backward."""
    with torch.profiler.profile() as profile:
        function()
    counts = {event.key: event.count for event in profile.key_averages()}
    names = 'swinv2_backbone::add_normed', 'swinv2_backbone::add_normed_backward'
    return tuple(counts.get(name, 0) for name in names)


def shallow(**kwargs):
    """Three blocks, of two stages, which have all types of layers."""
    arch = {**SMALL_ARCH, 'depths': (2, 1, 1, 1)}
    model = SwinTransformerV2(arch, out_indices=(0, 1), drop_path_rate=0.5, **kwargs)
    return randomize_parameters(model)


@interpreted
@pytest.mark.parametrize(
    ('autocast', 'with_cp'), [(None, True), (torch.bfloat16, True), (torch.float16, False)], ids=str
)
def test_a_network_in_half_precision_is_as_accurate_without_it(choose, autocast, with_cp):
    model, image = shallow(with_cp=with_cp), torch.randn(3, 3, 40, 52)
    expected = run(model.double().train(), image.double())
    model, image = (
        each.to(torch.float32 if autocast else torch.bfloat16) for each in (model, image)
    )
    choose(False)
    reference = run(model, image, autocast)
    choose(True)
    got = run(model, image, autocast)
    for ours, theirs in zip(got[0], reference[0], strict=True):
        assert ours.dtype == theirs.dtype
    for part in (0, 1):
        assert_as_accurate(got[part], reference[part], expected[part])
    assert calls_of(lambda: run(model, image, autocast)) == (12 if with_cp else 6, 6)


@interpreted
def test_what_the_kernel_cannot_do_is_done_by_the_modules(choose, small):
    model, image = small(), torch.randn(1, 3, 40, 40)
    half, inputs = small().bfloat16().train(), image.bfloat16()
    assert calls_of(lambda: half(inputs)) == (16, 0)
    assert calls_of(lambda: model(image)) == (0, 0), 'float32'
    seen = []
    half.layers[0].blocks[0].norm1.register_forward_hook(lambda *args: seen.append(args[2].shape))
    half.layers[1].blocks[0].drop_path.register_forward_pre_hook(lambda *_: seen.append('paths'))
    assert calls_of(lambda: half(inputs)) == (13, 0), 'a hook would not be called'
    assert seen == [(1, 10, 10, 16), 'paths', 'paths']
    half.layers[3].blocks[1].norm2 = torch.nn.Identity()
    half.layers[3].blocks[0].norm2 = torch.nn.LayerNorm(128, bias=False, dtype=torch.bfloat16)
    assert calls_of(lambda: half(inputs)) == (11, 0), 'another norm'


@interpreted
def test_transforms_of_functions_use_operators_of_torch(choose, small):
    model, image = small().bfloat16(), torch.randn(1, 3, 40, 40).bfloat16()

    def loss(parameters):
        return sum(out.float().mean() for out in functional_call(model, parameters, (image,)))

    assert calls_of(lambda: grad(loss)(dict(model.named_parameters()))) == (0, 0)


@interpreted
def test_export_has_no_operator_of_ours(choose):
    model, image = shallow().bfloat16().eval(), torch.randn(1, 3, 40, 40).bfloat16()
    program = torch.export.export(model, (image,))
    operators = {str(node.target) for node in program.graph.nodes if node.op == 'call_function'}
    assert not [name for name in operators if 'swinv2' in name]


@interpreted
@needs_compile
@pytest.mark.parametrize('autocast', [None, torch.bfloat16], ids=str)
def test_compiled_as_one_graph(choose, autocast):
    model, image = shallow(), torch.randn(2, 3, 40, 52)
    if autocast is None:
        model, image = model.bfloat16(), image.bfloat16()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    expected = run(model, image, autocast)
    got = run(compiled, image, autocast)
    assert calls_of(lambda: run(compiled, image, autocast)) == (6, 6)
    torch._dynamo.reset()
    exact = run(model.double(), image.double())
    assert_as_accurate(got[0], expected[0], exact[0])
    gradients = {name.removeprefix('_orig_mod.'): g for name, g in got[1].items()}
    assert_as_accurate(gradients, expected[1], exact[1])


# --- where it runs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('choice', 'device', 'runs'),
    [
        ('fused', 'cpu', False),
        ('fused', 'meta', False),
        ('triton', 'meta', True),
        ('reference', 'meta', False),
        ('sdpa', 'meta', False),
    ],
)
def test_where_it_runs(monkeypatch, choice, device, runs):
    monkeypatch.setattr(selection, '_HAS_TRITON', True)
    monkeypatch.setenv('SWINV2_ATTENTION', choice)
    half, single = (torch.empty(2, 3, device=device, dtype=d) for d in (*HALF[:1], torch.float32))
    assert use_fused_norm(single, half) == use_fused_norm(half, half) == runs
    assert not use_fused_norm(single, single)
    assert not use_fused_norm(half.double(), half)
    monkeypatch.setattr(selection, '_HAS_TRITON', False)
    assert not use_fused_norm(single, half)


def test_shapes_and_dtypes_on_the_meta_device():
    for x_dtype, branch_dtype in DTYPES:
        x, branch, weight, bias = (
            each.detach().to('meta').requires_grad_()
            for each in inputs_of((2, 3, 5, 24), x_dtype, branch_dtype)
        )
        out = add_normed(x, branch, weight, bias)
        assert (out.shape, out.dtype) == (x.shape, torch.promote_types(x_dtype, branch_dtype))
        out.sum().backward()
        for each in (x, branch, weight, bias):
            assert (each.grad.shape, each.grad.dtype) == (each.shape, each.dtype)


def test_the_reference_equals_the_modules_in_float64():
    inputs = [each.detach().double() for each in inputs_of((2, 3, 5, 24), *DTYPES[0])]
    for draws, keep in ((None, 1.0), (torch.tensor([0.1, 0.9]), 0.6), (torch.zeros(2), 0.0)):
        got = fused_norm._reference(*inputs, draws, keep, 1e-5)
        assert_equal_to_rounding(got, add_normed_by_modules(*inputs, draws, keep, 1e-5))
