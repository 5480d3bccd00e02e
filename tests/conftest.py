"""Shared fixtures. Core tests need torch and mmengine alone; others skip without their toolbox."""

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from tests.helpers.models import SMALL_ARCH, randomize_parameters


@pytest.fixture
def small():
    """A quick backbone of four stages with random weights, in eval mode."""

    def build(**kwargs):
        return randomize_parameters(
            SwinTransformerV2(**{'arch': SMALL_ARCH, 'drop_path_rate': 0.0, **kwargs})
        ).eval()

    return build


@pytest.fixture(params=['fused', 'reference'])
def implementation(request, monkeypatch):
    """Run the test with the fused attention and with the reference attention."""
    monkeypatch.setenv('SWINV2_ATTENTION', request.param)
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
