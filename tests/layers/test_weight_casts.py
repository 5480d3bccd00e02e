"""Weights cast together under autocast: values and gradients are those of autocast, bit for bit."""

import contextlib

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call, grad
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers import stages
from swinv2_backbone.layers.linear import linear
from swinv2_backbone.layers.weight_casts import cast_weights, use_casts
from tests.helpers.models import SMALL_ARCH, needs_compile, randomize_parameters

HALF = torch.bfloat16, torch.float16
CPU = torch.device('cpu')


@pytest.fixture
def one_by_one(monkeypatch):
    """A context in which autocast casts by itself."""

    @contextlib.contextmanager
    def one_by_one():
        with monkeypatch.context() as patch:
            patch.setattr(stages, 'cast_weights', lambda *_: {})
            yield

    return one_by_one


class Casts(TorchDispatchMode):
    """The shapes of what is cast from float32, alone and together with others."""

    def __init__(self):
        super().__init__()
        self.alone, self.together = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float32:
            self.alone.append(tuple(args[0].shape))
        if func is torch.ops.aten._foreach_copy_.default:
            self.together.append([tuple(x.shape) for x in args[1]])
        return func(*args, **(kwargs or {}))


def build(**kwargs):
    arch = {**SMALL_ARCH, 'depths': (2, 1, 1, 1)}
    return randomize_parameters(SwinTransformerV2(arch, **{'drop_path_rate': 0.5, **kwargs}))


def run(model, image, dtype=torch.bfloat16):
    """Maps and gradients; None for parameters without one."""
    model.zero_grad()
    torch.manual_seed(1)  # The same paths are dropped.
    with torch.autocast('cpu', dtype):
        maps = model(image)
    if any(out.requires_grad for out in maps):
        sum((out * torch.randn(out.shape).to(out)).sum() for out in maps).backward()
    return [*maps, *(p.grad for p in model.parameters())]


def assert_same(got, expected):
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)


@pytest.mark.parametrize('attention', ['fused', 'reference'])
@pytest.mark.parametrize('dtype', HALF, ids=str)
@pytest.mark.parametrize(
    'kwargs', [{}, {'with_cp': True}, {'frozen_stages': 2}, {'drop_rate': 0.5}], ids=str
)
def test_maps_and_gradients_are_the_same(monkeypatch, one_by_one, attention, dtype, kwargs):
    monkeypatch.setenv('SWINV2_ATTENTION', attention)
    model, image = build(**kwargs).train(), torch.randn(2, 3, 40, 52)
    with one_by_one():
        expected = run(model, image, dtype)
    assert_same(run(model, image, dtype), expected)
    with one_by_one(), torch.no_grad():
        expected = run(model.eval(), image, dtype)
    with torch.no_grad():
        assert_same(run(model, image, dtype), expected)


def test_one_cast_per_stage():
    model, image = build().train(), torch.randn(2, 3, 40, 52)
    with Casts() as mode:
        run(model, image)
    # Qkv, proj, fc1, fc2 of a block, each with a bias; and their gradients.
    assert [len(each) for each in mode.together] == [16, 8, 8, 8, 8, 8, 8, 16]
    cast = [shape for each in mode.together[:4] for shape in each]
    weights = {tuple(p.shape) for p in model.layers.parameters() if p.ndim == 2}
    assert not weights & {shape for shape in mode.alone if shape in cast}
    with Casts() as mode:
        model(image)
    assert not mode.together, 'no autocast'


def test_fresh_after_an_optimizer_step(one_by_one):
    """Autocast keeps its casts until its context ends, the optimizer steps after it."""
    image, results = torch.randn(1, 3, 40, 52), []
    for context in (one_by_one, contextlib.nullcontext):
        model = build().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with context():
            run(model, image)
            optimizer.step()
            results.append(run(model, image))
            model.get_parameter('layers.0.blocks.0.mlp.fc1.weight').data.mul_(2)
            results[-1] += run(model, image)
    assert_same(*results)


def test_gradients_after_a_call_without_them():
    model, image = build().eval(), torch.randn(1, 3, 40, 52)
    expected = run(model, image)
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16):
        with torch.no_grad():
            model(image)
        torch.manual_seed(1)
        maps = model(image)
    sum((out * torch.randn(out.shape).to(out)).sum() for out in maps).backward()
    got = [p.grad for name, p in model.layers.named_parameters() if '.mlp.fc' in name]
    names = [name for name, _ in model.named_parameters()]
    expected = expected[len(maps) :]
    assert_same(got, [g for n, g in zip(names, expected, strict=True) if '.mlp.fc' in n])


def test_frozen_weights_beside_others_have_no_gradient():
    layer, other = nn.Linear(2, 3), nn.Linear(2, 3).requires_grad_(False)
    layer.bias.requires_grad_(False)
    with torch.autocast('cpu', torch.bfloat16):
        casts = cast_weights([(each, each.bias) for each in (layer, other)], CPU)
    assert [x.requires_grad for pair in casts.values() for x in pair] == [True, False, False, False]


def test_double_and_half_weights_are_left_to_autocast():
    layers = [nn.Linear(2, 3), nn.Linear(2, 3).double(), nn.Linear(2, 3).bfloat16()]
    layers = [(layer, layer.bias) for layer in layers]
    assert not cast_weights(layers, CPU)
    with torch.autocast('cpu', torch.bfloat16):
        assert list(cast_weights(layers, CPU)) == [layers[0][0]]


def test_what_is_more_than_a_linear_layer_is_called():
    class Other(nn.Linear):
        pass

    model, image, seen = build().eval(), torch.randn(1, 3, 40, 52), []
    expected = run(model, image)
    first, second = (block.mlp for block in model.layers[0].blocks)
    first.fc1.register_forward_hook(lambda *args: seen.append('hook'))
    first.fc2.__class__ = Other
    second.fc1.weight = nn.Parameter(second.fc1.weight.detach().as_subclass(torch.Tensor))
    second.fc2 = nn.Sequential(second.fc2)
    with Casts() as mode:
        assert_same(run(model, image), expected)
    assert seen == ['hook']
    assert [len(each) for each in mode.together[:4]] == [16 - 6, 8, 8, 8]


def test_use_casts_ends_with_its_context():
    layer, x = nn.Linear(2, 3), torch.randn(4, 2)
    with torch.autocast('cpu', torch.bfloat16):
        casts = cast_weights([(layer, layer.bias)], CPU)
        layer.weight.data.zero_(), layer.bias.data.zero_()
        with use_casts(casts):
            assert linear(layer, x).any()
        assert not linear(layer, x).any()


# --- what watches or transforms the computation ---------------------------------------------------


def test_transforms_of_functions_are_the_same(one_by_one):
    model, image = build().eval(), torch.randn(1, 3, 40, 52)

    def loss(parameters):
        with torch.autocast('cpu', torch.bfloat16):
            return sum(out.square().mean() for out in functional_call(model, parameters, (image,)))

    parameters = dict(model.named_parameters())
    got = grad(loss)(parameters)
    with one_by_one():
        assert_same(list(got.values()), list(grad(loss)(parameters).values()))


def test_second_derivatives_are_the_same():
    layer, last, x = nn.Linear(3, 3), nn.Linear(3, 3), torch.randn(4, 3)
    parameters = [*layer.parameters(), *last.parameters()]

    def second(together):
        layers = [(each, each.bias) for each in (layer, last)]
        autocast = torch.autocast('cpu', torch.bfloat16)
        with autocast, use_casts(cast_weights(layers, CPU) if together else {}):
            loss = linear(last, torch.tanh(linear(layer, x))).float().square().sum()
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), parameters)]

    assert_same(second(True), second(False))


@needs_compile
@pytest.mark.parametrize('part', ['model', 'blocks'])
def test_compiled(one_by_one, part):
    """A compiled model leaves its casts to the compiler; compiled blocks are called with them."""
    image, results = torch.randn(1, 3, 40, 52), []
    for context in (one_by_one, contextlib.nullcontext):
        model = build(drop_path_rate=0.0).train()
        torch._dynamo.reset()
        for each in [model] if part == 'model' else model.layers[0].blocks:
            each.compile(fullgraph=True, backend='aot_eager')
        with context():
            results.append(run(model, image))
    torch._dynamo.reset()
    assert_same(*results)


def test_distributed(one_by_one):
    """One process has all of DDP's hooks."""
    model, image = build().train(), torch.randn(1, 3, 40, 52)
    with one_by_one():
        expected = run(model, image)
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        for _ in range(2):  # The second time, by the order of the first.
            assert_same(run(wrapped, image), expected)
    finally:
        dist.destroy_process_group()
