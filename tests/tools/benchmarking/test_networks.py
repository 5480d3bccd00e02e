"""Variants of ours that are timed beside it do what their names say."""

import pytest
import torch

from swinv2_backbone.layers import linear
from tools.benchmarking.cases import Case
from tools.benchmarking.networks import build_network


def build(name):
    return build_network(name, Case('infer', 64, 64, 8, 1, 'fp32'), 'mini', 0.0)


@pytest.mark.skipif(not linear._HAS_ONEDNN, reason='torch was built without oneDNN')
def test_without_onednn(monkeypatch):
    calls, operator = [], torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(linear, '_HAS_ONEDNN', linear._HAS_ONEDNN)  # Restored after the test.
    monkeypatch.setattr(
        torch.ops.mkldnn, '_linear_pointwise', lambda *args: calls.append(1) or operator(*args)
    )
    counts, maps = [], []
    for name in ('ours', 'ours_without_onednn'):
        calls.clear()
        with torch.no_grad():
            maps.append(build(name)(torch.ones(1, 3, 64, 64)))
        counts.append(len(calls))
    assert counts[0] > 0 == counts[1]
    torch.testing.assert_close(*maps)


def test_without_norms():
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        normed, plain = build('ours')(image), build('ours_without_norms')(image)
    network = build('ours').network
    for index, (got, expected) in enumerate(zip(plain, normed, strict=True)):
        norm = getattr(network, f'norm{index}')
        torch.testing.assert_close(norm(got.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), expected)
        assert not torch.equal(got, expected)
