"""torch.compile and torch.export: no graph break, one graph for many sizes, the same values.

Most tests run torch's tracers with the eager backend: the kernels that inductor makes of the same
graphs take minutes of C++ compilation, and are tested under `slow`.
"""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch.autograd import forward_ad

from swinv2_backbone import SwinTransformerV2
from tests.helpers.models import SMALL_ARCH, needs_compile, randomize_parameters
from tests.helpers.tolerance import assert_as_accurate, assert_equal_to_rounding

# At least 225 pixels: then no map is smaller than its window of 8. Odd ones pad everywhere.
SIZES = [(256, 320), (288, 256), (225, 402)]

pytestmark = needs_compile


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def shallow(**kwargs):
    """Four stages of which one has a shifted block, to trace it in half the time; in float64."""
    arch = {**SMALL_ARCH, 'depths': (2, 1, 1, 1)}
    return randomize_parameters(SwinTransformerV2(arch, drop_path_rate=0.0, **kwargs)).double()


def gradients(model, run, image):
    model.zero_grad()
    sum(out.square().mean() for out in run(image)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(compiled, model, image):
    """The maps, and in train mode the gradients, of a compiled model and of the model."""
    if model.training:
        expected, got = (gradients(model, run, image) for run in (model, compiled))
        assert_equal_to_rounding(got, expected)
    with torch.set_grad_enabled(model.training):
        assert_equal_to_rounding(compiled(image), model(image))


def assert_one_graph():
    # Older versions compile some sizes anew.
    if torch.__version__ >= (2, 13):
        assert counters['stats']['unique_graphs'] == 1


# Two stages have all types of layers; four take long to trace.
@pytest.mark.parametrize(
    'out_indices', [(0, 1), pytest.param((0, 1, 2, 3), marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize('training', [False, True])
def test_one_graph_serves_all_sizes(training, out_indices):
    model = shallow(out_indices=out_indices).train(training)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend='aot_eager')
    for size in SIZES:
        assert_same(compiled, model, torch.randn(2, 3, *size).double())
    assert_one_graph()


def test_maps_smaller_than_the_window_are_one_more_graph():
    model = shallow().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend='eager')
    with torch.no_grad():
        for size in ((120, 250), (200, 400), (130, 300)):  # The last map is 4 to 7 rows high.
            image = torch.randn(1, 3, *size).double()
            assert_equal_to_rounding(compiled(image), model(image))
    assert_one_graph()


def test_derivatives_by_transforms_are_those_of_eager_mode():
    """Compiled gradients, and forward-mode derivatives of a model compiled before."""
    model, image = shallow(out_indices=(0,)).eval(), torch.randn(1, 3, 100, 72).double()
    function = lambda x: model(x)[0].square().sum()  # noqa: E731
    gradient = torch.compile(torch.func.grad(function), backend='aot_eager')
    assert_equal_to_rounding(gradient(image), torch.func.grad(function)(image))
    compiled = torch.compile(function, backend='aot_eager')
    with torch.no_grad():
        compiled(image)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(image, image.flip(-1))
            got, expected = (forward_ad.unpack_dual(f(dual)).tangent for f in (compiled, function))
        assert_equal_to_rounding(got, expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_is_as_accurate_as_in_eager_mode(dtype):
    model, image = shallow().train(), torch.randn(1, 3, 100, 72).double()
    exact = gradients(model, model, image)
    model, image = model.float(), image.float()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    with torch.autocast('cpu', dtype):
        eager, got = (gradients(model, run, image) for run in (model, compiled))
    for name, gradient in got.items():
        assert gradient.isfinite().all(), name
    assert_as_accurate(got, eager, exact)


def test_operators_pass_opcheck():
    from swinv2_backbone.layers import fused_attention

    inputs = [torch.randn(20, 3, 2, 4), 5 + torch.rand(2, 1, 1), torch.randn(2, 9, 9)]
    inputs = [x.requires_grad_() for x in inputs]
    found = torch.library.opcheck(
        fused_attention._attend_operator, (*inputs, [5, 4], [3, 3], True, None)
    )
    assert set(found.values()) == {'SUCCESS'}, found
    assert 'test_autograd_registration' in found


@pytest.mark.skipif(not hasattr(torch.Tag, 'cudagraph_unsafe'), reason='the tag is younger')
@pytest.mark.parametrize('training', [False, True])
def test_cuda_graphs_leave_out_operators_that_cache(training):
    """mode='reduce-overhead' warms up in memory that its graphs use again."""
    from torch._inductor.utils import get_first_incompatible_cudagraph_node

    found = []

    def keep(graph, _):
        found.append(get_first_incompatible_cudagraph_node(graph))
        return make_boxed_func(graph.forward)

    model, image = shallow(out_indices=(0,)).train(training), torch.ones(1, 3, 40, 40).double()
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, inference_compiler=keep)
    with torch.set_grad_enabled(training):
        maps = torch.compile(model, fullgraph=True, backend=backend)(image)
        if training:
            maps[0].sum().backward()
    names = ['attend', 'attend_backward'][: 1 + training]
    assert [str(node.target) for node in found] == [f'swinv2_backbone.{n}.default' for n in names]


def test_export_has_no_operator_of_ours():
    model, image = shallow().eval(), torch.randn(1, 3, 100, 72).double()
    program = torch.export.export(model, (image,))
    operators = {str(node.target) for node in program.graph.nodes if node.op == 'call_function'}
    assert not [name for name in operators if 'swinv2' in name]
    with torch.no_grad():
        assert_equal_to_rounding(program.module()(image), model(image))


@pytest.mark.slow
@pytest.mark.parametrize('training', [False, True])
def test_inductor_computes_the_same(training):
    model = shallow().train(training)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for size in SIZES[:2]:
        assert_same(compiled, model, torch.randn(1, 3, *size).double())


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_cuda_graph_computes_the_same():
    model, image = shallow().eval().cuda(), torch.randn(2, 3, 256, 320).double().cuda()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.no_grad():
        with torch.cuda.stream(stream):
            model(image)  # Fills the caches for this size.
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            maps = model(image)
        image.copy_(torch.randn_like(image))
        graph.replay()
        assert_equal_to_rounding(maps, model(image))
