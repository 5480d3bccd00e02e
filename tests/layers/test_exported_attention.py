"""The attention of exporters against the reference attention, and exported graphs of any size."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.layers.exported_attention import attend_any_size, attend_exported
from swinv2_backbone.layers.position_bias import expand_table
from swinv2_backbone.layers.reference_attention import attend_reference
from swinv2_backbone.layers.windows import WindowGrid
from tests.helpers.models import SMALL_ARCH, randomize_parameters
from tests.helpers.tolerance import assert_equal_to_rounding

WINDOW = 4, 6
SIZES = [(1, 1), (3, 2), (4, 6), (8, 12), (9, 5), (4, 7), (11, 17)]


def inputs(size, window, batch=2, heads=2, width=4):
    """A random map, projection and scale, and the bias of a window as a function of offset."""
    channels = heads * width
    x = torch.randn(batch, *size, channels, dtype=torch.float64)
    x[0, 0, 0] = 0  # A blank token, whose key is 0.
    weight, qkv_bias = torch.randn(3 * channels, channels + 1, dtype=torch.float64).split(
        [channels, 1], 1
    )
    qkv_bias = qkv_bias.flatten().index_fill(0, torch.arange(channels, 2 * channels), 0)
    scale = 5 + torch.rand(heads, 1, 1, dtype=torch.float64)
    table = torch.randn(heads, 2 * WINDOW[0] - 1, 2 * WINDOW[1] - 1, dtype=torch.float64)
    rows, cols = (slice(f - w, f + w - 1) for f, w in zip(WINDOW, window, strict=True))
    bias = expand_table(table[:, rows, cols].flatten(1), window)
    return x, (weight, qkv_bias), scale, bias, table


@pytest.mark.parametrize('attend', [attend_exported, attend_any_size])
@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize('size', SIZES)
def test_equals_the_reference_attention(size, shifted, attend):
    grid = WindowGrid.for_map(size, WINDOW, shifted)
    x, projection, scale, bias, _ = inputs(size, grid.window)
    assert_equal_to_rounding(
        attend(x, *projection, scale, bias, grid),
        attend_reference(F.linear(x, *projection), scale, bias, grid),
    )


@pytest.mark.parametrize('attend', [attend_exported, attend_any_size])
@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize('size', SIZES)
def test_a_window_larger_than_the_map_changes_nothing(size, shifted, attend):
    """A graph for any size has windows of one size, where eager shrinks them to the map."""
    grid = WindowGrid.for_map(size, WINDOW, shifted)
    x, projection, scale, bias, table = inputs(size, grid.window)
    fixed = WindowGrid(size, WINDOW, shifted)
    assert_equal_to_rounding(
        attend(x, *projection, scale, expand_table(table.flatten(1), WINDOW), fixed),
        attend_reference(F.linear(x, *projection), scale, bias, grid),
    )


@pytest.fixture(scope='module')
def model():
    arch = {**SMALL_ARCH, 'depths': (2, 1, 1, 1)}
    # Two stages have all types of layers.
    windows = dict(window_size=3, pretrained_window_sizes=8)
    model = SwinTransformerV2(arch, **windows, drop_path_rate=0.0, out_indices=(0, 1))
    return randomize_parameters(model).double().eval()


# Of one token, smaller than a patch, odd, long, of whole windows at every stage.
IMAGES = [(1, 1), (3, 9), (31, 33), (7, 150), (96, 192), (101, 64)]


@pytest.mark.skipif(torch.__version__ < '2.8', reason='torch 2.7 exports for one size alone')
def test_one_graph_of_torch_export_takes_every_size(model):
    sides = {2: torch.export.Dim('height', min=1), 3: torch.export.Dim('width', min=1)}
    config = torch.fx.experimental._config
    with torch.no_grad(), config.patch(backed_size_oblivious=True):
        image = torch.randn(1, 3, 72, 100).double()
        program = torch.export.export(model, (image,), dynamic_shapes=(sides,))
    graph = program.module()
    for size in IMAGES:
        image = torch.randn(1, 3, *size).double()
        with torch.no_grad():
            assert_equal_to_rounding(graph(image), model(image))


def test_norms_in_a_graph_of_one_size_have_one_axis_of_tokens():
    """For that OpenVINO has one operator; also if somebody has put in norms of another kind."""
    model = SwinTransformerV2(SMALL_ARCH, window_size=4).eval()
    model.layers[0].blocks[0].norm1 = nn.RMSNorm(model.out_channels[0])
    model, image = model.double(), torch.randn(2, 3, 72, 100).double()
    with torch.no_grad():
        program = torch.export.export(model, (image,))
        assert_equal_to_rounding(program.module()(image), model(image))
    operators = torch.ops.aten.layer_norm.default, torch.ops.aten.rms_norm.default
    norms = [node for node in program.graph.nodes if node.target in operators]
    assert len(norms) == sum(isinstance(m, (nn.LayerNorm, nn.RMSNorm)) for m in model.modules())
    assert {node.args[0].meta['val'].ndim for node in norms} == {3}


def test_one_trace_takes_every_size(model):
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(1, 3, 72, 100).double())
        for size in IMAGES:
            image = torch.randn(1, 3, *size).double()
            assert_equal_to_rounding(traced(image), model(image))
