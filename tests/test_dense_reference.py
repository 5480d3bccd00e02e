"""The backbone against the plain reference of dense_reference.py."""

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.arguments import ARCHITECTURES, parse_windows
from tests.helpers.dense_reference import dense_forward
from tests.helpers.models import TINY, randomize_parameters

SIZES = [(256, 256), (224, 224), (200, 328), (33, 65), (7, 150), (1, 1)]
WINDOWS = [8, 16, (4, 12), [8, 8, 16, 7]]


@pytest.fixture(scope='module')
def weights():
    return randomize_parameters(SwinTransformerV2(**TINY)).state_dict()


pytestmark = pytest.mark.usefixtures('implementation')


def worst_error(weights, image, window, pretrained=8):
    """Largest absolute difference to the reference, the backbone being in the image's dtype."""
    model = SwinTransformerV2(**TINY, window_size=window, pretrained_window_sizes=pretrained)
    model.load_state_dict(dict(weights))  # without the note of the windows it was trained with
    arch = ARCHITECTURES['tiny']
    expected = dense_forward(
        weights,
        image,
        arch['depths'],
        arch['num_heads'],
        parse_windows('window', window),
        parse_windows('pretrained', pretrained),
    )
    with torch.no_grad():
        maps = model.eval().to(image.dtype)(image)
    return max(
        (ours - theirs).abs().max().item() for ours, theirs in zip(maps, expected, strict=True)
    )


@pytest.mark.parametrize('window', WINDOWS, ids=str)
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_agrees_with_the_dense_reference(weights, size, window):
    assert worst_error(weights, torch.randn(1, 3, *size), window) <= 2e-5


@pytest.mark.parametrize('window', WINDOWS, ids=str)
@pytest.mark.parametrize('size', [(100, 164), *SIZES[3:]], ids=str)
def test_agrees_to_rounding_in_float64(size, window):
    weights = randomize_parameters(SwinTransformerV2(**TINY), seed=1, above_clamp=True).state_dict()
    assert worst_error(weights, torch.randn(2, 3, *size).double(), window) <= 1e-11


@pytest.mark.parametrize('pretrained', [[16, 16, 16, 8], (6, 12), 1], ids=str)
def test_agrees_in_units_of_other_pretrained_windows(weights, pretrained):
    image = torch.randn(2, 3, 100, 164).double()
    assert worst_error(weights, image, (5, 9), pretrained) <= 1e-11
