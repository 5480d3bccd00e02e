"""The backbone against the dense reference of tests/helpers/dense_reference.py."""

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.arguments import ARCHITECTURES, parse_windows
from tests.helpers.dense_reference import dense_forward
from tests.helpers.models import TINY, randomize_parameters
from tests.helpers.tolerance import assert_as_accurate, assert_equal_to_rounding

WINDOWS = [8, 16, (4, 12), [8, 8, 16, 7]]


@pytest.fixture(scope='module')
def model():
    return randomize_parameters(SwinTransformerV2(**TINY), seed=1).eval()


@pytest.fixture(scope='module')
def model_above_clamp():
    return randomize_parameters(SwinTransformerV2(**TINY), seed=1, above_clamp=True).double().eval()


def dense(model, image, window, pretrained=8, dtype=torch.float64):
    arch = ARCHITECTURES['tiny']
    return dense_forward(
        model.state_dict(),
        image,
        arch['depths'],
        arch['num_heads'],
        parse_windows('window', window),
        parse_windows('pretrained', pretrained),
        dtype=dtype,
    )


def with_both(monkeypatch, model, image, window):
    """The backbone's maps at a window, with each implementation of the attention."""
    for implementation in ('fused', 'reference'):
        monkeypatch.setenv('SWINV2_ATTENTION', implementation)
        with torch.no_grad(), model.window_size_as(window):
            yield model(image)


@pytest.mark.parametrize('window', WINDOWS, ids=str)
@pytest.mark.parametrize('size', [(100, 164), (33, 65), (7, 150), (1, 1)], ids=str)
def test_equals_the_dense_reference(monkeypatch, model_above_clamp, size, window):
    image = torch.randn(2, 3, *size).double()
    expected = dense(model_above_clamp, image, window)
    for maps in with_both(monkeypatch, model_above_clamp, image, window):
        assert_equal_to_rounding(maps, expected)


@pytest.mark.parametrize('pretrained', [[16, 16, 16, 8], (6, 12), 1], ids=str)
def test_equals_the_dense_reference_at_other_pretrained_windows(
    monkeypatch, model_above_clamp, pretrained
):
    model = SwinTransformerV2(**TINY, pretrained_window_sizes=pretrained).double().eval()
    # dict(): without the metadata, which has the pretrained windows of the other model.
    model.load_state_dict(dict(model_above_clamp.state_dict()))
    image = torch.randn(2, 3, 100, 164).double()
    expected = dense(model, image, (5, 9), pretrained)
    for maps in with_both(monkeypatch, model, image, (5, 9)):
        assert_equal_to_rounding(maps, expected)


@pytest.mark.parametrize(
    ('size', 'window'), [((256, 256), 8), ((200, 328), [8, 8, 16, 7])], ids=str
)
def test_is_as_accurate_as_the_dense_reference(monkeypatch, model, size, window):
    image = torch.randn(1, 3, *size)
    exact = dense(model, image, window)
    single = dense(model, image, window, dtype=torch.float32)
    for maps in with_both(monkeypatch, model, image, window):
        for ours, theirs, expected in zip(maps, single, exact, strict=True):
            assert_as_accurate(ours, theirs, expected)
