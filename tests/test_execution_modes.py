"""The backbone under everything that watches or transforms a computation.

Derivatives of all modes and orders, batching by vmap, tracing, meta and fake tensors, the counter
of FLOPs, threads.
"""

import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.utils.flop_counter import FlopCounterMode

from swinv2_backbone import SwinTransformerV2
from tests.helpers.models import SMALL_ARCH, TINY, randomize_parameters
from tests.helpers.tolerance import assert_equal_to_rounding

# Two stages have all types of layers; 72 x 100 pads and shifts both.
ARCH = {**SMALL_ARCH, 'depths': (2, 2, 1, 1)}


@pytest.fixture
def model():
    model = SwinTransformerV2(ARCH, drop_path_rate=0.0, out_indices=(0, 1))
    return randomize_parameters(model).double().eval()


@pytest.fixture
def image():
    return torch.randn(1, 3, 72, 100).double()


def scalar(model, image):
    """A number that depends on every output."""
    return sum(
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in model(image)
    )


def reference_gradient(monkeypatch, model, image):
    """Gradients of :func:`scalar` for image and parameters, by backward and the reference."""
    monkeypatch.setenv('SWINV2_ATTENTION', 'reference')
    image = image.clone().requires_grad_()
    gradients = torch.autograd.grad(scalar(model, image), [image, *model.parameters()])
    monkeypatch.delenv('SWINV2_ATTENTION')
    return gradients


# --- derivatives ----------------------------------------------------------------------------------


def test_forward_mode_equals_the_backward(monkeypatch, model, image):
    gradients = reference_gradient(monkeypatch, model, image)
    tangent = torch.randn_like(image)
    expected = (gradients[0] * tangent).sum()
    with torch.no_grad():  # Which does not turn off forward-mode differentiation.
        model(image)  # Fills the caches.
        got = [jvp(lambda x: scalar(model, x), (image,), (tangent,))[1]]
        with forward_ad.dual_level():
            dual = scalar(model, forward_ad.make_dual(image, tangent))
            got.append(forward_ad.unpack_dual(dual).tangent)
    got.append(jvp(lambda x: scalar(model, x), (image,), (tangent,))[1])
    assert_equal_to_rounding(got, [expected] * 3)


def test_forward_mode_of_parameters_equals_the_backward(monkeypatch, model, image):
    gradients = reference_gradient(monkeypatch, model, image)[1:]
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    expected = sum((g * t).sum() for g, t in zip(gradients, tangents.values(), strict=True))

    def function(parameters):
        return scalar(lambda x: functional_call(model, parameters, (x,)), image)

    with torch.no_grad():
        model(image)
        got = jvp(function, (parameters,), (tangents,))[1]
    assert_equal_to_rounding(got, expected)


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('training', [False, True])
def test_transforms_of_functions_equal_the_backward(monkeypatch, model, image, with_cp, training):
    for stage in model.train(training).layers:
        stage.with_cp = with_cp
    expected = dict(
        zip(
            ['image', *(name for name, _ in model.named_parameters())],
            reference_gradient(monkeypatch, model, image),
            strict=True,
        )
    )
    assert_equal_to_rounding(grad(lambda x: scalar(model, x))(image), expected['image'])
    value, pull_back = vjp(lambda x: scalar(model, x), image)
    assert_equal_to_rounding(pull_back(torch.ones_like(value))[0], expected.pop('image'))
    parameters = dict(model.named_parameters())
    got = grad(lambda p: scalar(lambda x: functional_call(model, p, (x,)), image))(parameters)
    assert_equal_to_rounding(got, expected)


def test_vmap_over_images_and_over_weights(model, image):
    other = randomize_parameters(
        SwinTransformerV2(ARCH, drop_path_rate=0.0, out_indices=(0, 1)), seed=1
    )
    models = [model, other.double().eval()]
    with torch.no_grad():
        expected = [torch.stack(maps) for maps in zip(*(m(image) for m in models), strict=True)]
        stacked = torch.func.stack_module_state(models)
        got = vmap(lambda *state: functional_call(model, state, (image,)))(*stacked)
        images = torch.stack([image, image.flip(-1)])
        assert_equal_to_rounding(got, expected)
        expected = [torch.stack(maps) for maps in zip(*map(model, images), strict=True)]
        assert_equal_to_rounding(vmap(model)(images), expected)


def test_second_derivatives_equal_forward_over_reverse(model, image):
    """Hessian-vector products: twice backward, by the fused attention, against torch.func."""
    direction = torch.randn_like(image)
    _, expected = jvp(grad(lambda x: scalar(model, x).square()), (image,), (direction,))
    image.requires_grad_()
    [gradient] = torch.autograd.grad(scalar(model, image).square(), image, create_graph=True)
    [got] = torch.autograd.grad((gradient * direction).sum(), image)
    assert_equal_to_rounding(got, expected)


def test_derivatives_equal_finite_differences():
    arch = dict(embed_dims=4, depths=(2, 1, 1, 1), num_heads=(2, 2, 2, 2))
    model = SwinTransformerV2(
        arch, window_size=2, out_indices=(0,), drop_path_rate=0.0, in_channels=1
    )
    model = randomize_parameters(model).double()
    image = torch.randn(1, 1, 12, 11).double().requires_grad_()
    function = lambda x: model(x)[0][:, :, 0]  # noqa: E731
    assert gradcheck(function, image, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, image)


# --- tracing, meta and fake tensors ---------------------------------------------------------------


def test_a_model_that_never_ran_can_be_traced(model, image):
    with torch.no_grad():
        traced = torch.jit.trace(model, image)  # It traces twice, and compares.
        assert_equal_to_rounding(traced(image), model(image))
        assert_equal_to_rounding(traced(2 * image), model(2 * image))


@pytest.mark.parametrize('implementation', ['fused', 'reference'])
@pytest.mark.parametrize('training', [False, True])
def test_shapes_on_the_meta_device(monkeypatch, implementation, training):
    monkeypatch.setenv('SWINV2_ATTENTION', implementation)
    with torch.device('meta'):
        model = SwinTransformerV2(ARCH).train(training)
        image = torch.empty(2, 3, 72, 100)
    with torch.set_grad_enabled(training):
        maps = model(image)
    if training:
        sum(out.sum() for out in maps).backward()
        assert all(p.grad.shape == p.shape for p in model.parameters())
    assert [tuple(out.shape) for out in maps] == [
        (2, 16, 18, 25),
        (2, 32, 9, 13),
        (2, 64, 5, 7),
        (2, 128, 3, 4),
    ]
    assert all(out.is_meta for out in maps)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('inside', [False, True], ids=['existing model', 'model made inside'])
def test_shapes_with_fake_tensors(model, image, training, inside):
    with torch.set_grad_enabled(training):
        expected = [out.shape for out in model.train(training)(image)]  # Fills the caches.
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            if inside:
                model = SwinTransformerV2(ARCH, out_indices=(0, 1)).train(training)
                image = image.float()
            maps = model(mode.from_tensor(image))
        assert [out.shape for out in maps] == expected


def test_a_model_from_the_meta_device_is_initialized(image):
    """Deferred initialization, as FSDP does it: meta device, to_empty, init_weights."""
    with torch.device('meta'):
        model = SwinTransformerV2(ARCH)
    with pytest.raises(RuntimeError, match=r'meta device.*to_empty'):
        model.init_weights()
    model.to_empty(device='cpu')
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    torch.manual_seed(3)
    model.init_weights()
    torch.manual_seed(3)
    expected = dict(SwinTransformerV2(ARCH).named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        bound = expected[name].abs().max() + 0.05
        assert parameter.abs().max() <= bound, name
        if expected[name].unique().numel() == 1:
            assert torch.equal(parameter, expected[name]), name


def test_loading_a_state_dict_ends_the_deferred_initialization(model):
    """mmengine's Runner calls init_weights of any model that it gets."""
    with torch.device('meta'):
        loaded = SwinTransformerV2(ARCH, drop_path_rate=0.0, out_indices=(0, 1))
    loaded.load_state_dict(model.state_dict(), assign=True)
    loaded.init_weights()
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


# --- FLOPs ----------------------------------------------------------------------------------------


def flops(model, image):
    with FlopCounterMode(display=False) as counter:
        sum(out.sum() for out in model(image)).backward()
    return counter.get_flop_counts()['Global']


@pytest.mark.parametrize('size', [(64, 64), (72, 100)])
def test_flops_equal_those_of_the_reference(monkeypatch, model, size):
    image = torch.randn(2, 3, *size).double()
    with torch.no_grad(), FlopCounterMode(display=False) as fused:
        model(image)
    training = flops(model.train(), image)
    monkeypatch.setenv('SWINV2_ATTENTION', 'reference')
    with torch.no_grad(), FlopCounterMode(display=False) as reference:
        model.eval()(image)
    assert fused.get_total_flops() == reference.get_total_flops()
    recomputed = sum(
        value for name, value in training.items() if str(name) == 'swinv2_backbone.attend_backward'
    )
    # The fused backward computes the logits again: one product in five.
    reference = flops(model.train(), image)
    assert sum(training.values()) == sum(reference.values()) + recomputed / 5


def test_flops_of_tiny_are_the_published_ones():
    """5.9 G multiply-adds at 256 px (the paper, table 12), of which the classifier is 1 M."""
    with torch.device('meta'):
        model, image = SwinTransformerV2(**TINY).eval(), torch.empty(1, 3, 256, 256)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    assert round(counter.get_total_flops() / 2e9, 1) == 5.9


# --- threads --------------------------------------------------------------------------------------


def test_threads_may_share_a_model(model):
    """Eight threads, each in another order through more sizes than the caches hold."""
    images = [torch.randn(1, 3, 8, 4 * (1 + i)).double() for i in range(24)]
    with torch.no_grad():
        expected = [model(image) for image in images]
    got, barrier = {}, threading.Barrier(8)

    def serve(first):
        barrier.wait()
        with torch.no_grad():
            for i in range(first, first + len(images)):
                got[first, i % len(images)] = model(images[i % len(images)])

    threads = [threading.Thread(target=serve, args=(3 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8 * len(images)
    for (_, i), maps in got.items():
        assert_equal_to_rounding(maps, expected[i])
