"""The benchmark's networks of the other implementations return four maps of our shapes."""

import pytest
import torch

from tools.benchmarking.cases import ARCHITECTURES, Case
from tools.benchmarking.implementations import IMPLEMENTATIONS
from tools.benchmarking.networks import build_network
from tools.benchmarking.steps import check_maps

from .implementations import need


@pytest.mark.parametrize('name', IMPLEMENTATIONS)
def test_maps_at_a_rectangular_size(name):
    need(name)
    case = Case('infer', 64, 96, 8, batch=1, dtype='fp32')
    with torch.inference_mode():
        maps = build_network(name, case, 'mini', 0.0)(torch.randn(1, 3, 64, 96))
    check_maps(maps, case.map_shapes(ARCHITECTURES['mini']['embed_dims']))
