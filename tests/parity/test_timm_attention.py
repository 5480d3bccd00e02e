"""timm's own attention under autocast is what the Triton kernels are compared with."""

import torch
from torch import nn

from swinv2_backbone.layers.windows import WindowGrid
from tests.helpers.attention import attend_as_timm, attend_exactly
from tests.helpers.tolerance import relative_error

from .comparison import measured
from .implementations import need

NAMES = 'output', 'qkv', 'scale', 'table'
WINDOW, HEADS, WIDTH = 8, 2, 32


class Table(nn.Module):
    """In place of the CPB network, which timm computes in bfloat16."""

    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(2 * torch.randn((2 * WINDOW - 1) ** 2, HEADS))

    def forward(self, _):
        return self.raw


def test_timm_computes_what_attend_as_timm_does():
    need('timm')
    from timm.models import swin_transformer_v2 as timm

    module = timm.WindowAttention(HEADS * WIDTH, (WINDOW, WINDOW), HEADS, qkv_bias=False)
    module.proj, module.cpb_mlp = nn.Identity(), Table()
    # As many tokens as channels: of one-hot tokens, the projection's weight is qkv, transposed.
    qkv = torch.randn(WINDOW**2, 3, HEADS, WIDTH).bfloat16()
    module.qkv.weight.data = qkv.flatten(1).t().float()
    module.logit_scale.data = (10 + 90 * torch.rand(HEADS, 1, 1)).log()
    grad_out = torch.randn(len(qkv), HEADS * WIDTH).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        out = module(torch.eye(WINDOW**2)[None])[0]
    parameters = module.qkv.weight, module.logit_scale, module.cpb_mlp.raw
    theirs = out, *torch.autograd.grad(out, parameters, grad_out)

    grid = WindowGrid.for_map((WINDOW, WINDOW), (WINDOW, WINDOW), False)
    inputs = qkv.clone().requires_grad_(), module.logit_scale, module.cpb_mlp.raw
    scale, table = inputs[1].exp(), 16 * torch.sigmoid(inputs[2]).t()
    out = attend_as_timm(inputs[0], scale, table, grid)
    ours = [out, *torch.autograd.grad(out, inputs, grad_out)]
    ours[1] = ours[1].flatten(1).t().float()
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    for got, expected in zip(ours[2:], theirs[2:], strict=True):
        # The same terms, N * N of them for each head, in another order.
        terms = WINDOW**4 * torch.finfo(torch.float32).eps / 2
        assert relative_error(got, expected) <= terms
    exact = attend_exactly(qkv, scale.detach(), table.detach(), grid, grad_out)
    for name, got, expected in zip(NAMES[:2], ours, exact, strict=False):
        expected = expected.flatten(1).t() if name == 'qkv' else expected
        measured.append(f'timm under autocast, {name}: {relative_error(got, expected):.1e}')
