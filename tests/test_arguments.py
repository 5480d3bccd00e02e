"""Arguments of the backbone: accepted forms, and errors that say what is allowed."""

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.arguments import ARCHITECTURES, parse_arch
from tests.helpers.models import SMALL_ARCH


@pytest.mark.parametrize(('arch', 'name'), [('t', 'tiny'), ('s', 'small'), ('B', 'base')])
def test_an_initial_stands_for_an_architecture(arch, name):
    assert parse_arch(arch) == parse_arch(name) == ARCHITECTURES[name]


BAD_ARGUMENTS = [
    (dict(arch='huge'), ValueError, r"arch: got 'huge', allowed: 'tiny' \('t'\)"),
    (dict(arch=3), TypeError, r'arch: got 3 \(int\)'),
    (dict(arch=dict(embed_dims=96)), ValueError, r"arch: .*keys \['embed_dims'\]"),
    (dict(arch=dict(SMALL_ARCH, depth=2)), ValueError, 'arch: .*depth'),
    (dict(arch=dict(SMALL_ARCH, depths=(2, 2))), ValueError, r"arch\['depths'\]: got \(2, 2\)"),
    (dict(arch=dict(SMALL_ARCH, depths=(2, 2, 0, 2))), ValueError, r"arch\['depths'\]\[2\]: got 0"),
    (dict(arch=dict(SMALL_ARCH, num_heads=(1, 2, 5, 8))), ValueError, 'got 5 heads at stage 2'),
    (dict(arch=dict(SMALL_ARCH, num_heads=4)), TypeError, r"arch\['num_heads'\]: got 4"),
    (dict(in_channels=0), ValueError, 'in_channels: got 0, allowed: an integer of at least 1'),
    (dict(patch_size=4.0), TypeError, r'patch_size: got 4\.0 \(float\)'),
    (dict(window_size=0), ValueError, 'window_size: got 0, allowed: an integer of at least 1'),
    (dict(window_size=-8), ValueError, 'window_size: got -8'),
    (dict(window_size=True), TypeError, 'window_size: got True'),
    (dict(window_size='8'), TypeError, "window_size: got '8'"),
    (dict(window_size=[8, 8, 8]), ValueError, r'window_size: got \[8, 8, 8\], 3 entries'),
    (dict(window_size=[8, 8, (8, 8, 8), 8]), ValueError, r'window_size\[2\]: got \(8, 8, 8\)'),
    (dict(window_size=[8, 8, 8, 0]), ValueError, r'window_size\[3\]: got 0'),
    (dict(window_size=[8, 8, None, 8]), TypeError, r'window_size\[2\]: got None'),
    (dict(window_size=(8, 8.5)), ValueError, r'window_size: got \(8, 8\.5\), 2 entries'),
    (dict(pretrained_window_sizes=0), ValueError, 'pretrained_window_sizes: got 0.*stretch'),
    (dict(pretrained_window_sizes=[0, 0, 0, 0]), ValueError, 'pretrained_window_sizes.*stretch'),
    (dict(pretrained_window_sizes=[8, 8] * 3), ValueError, 'pretrained_window_sizes: .* 6 entries'),
    (dict(pretrained_window_sizes=-1), ValueError, 'pretrained_window_sizes: got -1'),
    (dict(mlp_ratio=0), ValueError, r'mlp_ratio: got 0, allowed: a number of at least 0\.0625'),
    (dict(mlp_ratio=0.01), ValueError, r'mlp_ratio: got 0\.01'),
    (dict(init_cfg='x.pth'), TypeError, r"init_cfg: got 'x.pth' \(str\), allowed: a dict with"),
    (dict(init_cfg=['x.pth']), TypeError, r"init_cfg: got \['x\.pth'\]"),
    (dict(init_cfg=dict(checkpoint='x')), ValueError, 'init_cfg: got'),
    (dict(mlp_ratio=float('inf')), ValueError, 'mlp_ratio: got inf'),
    (dict(mlp_ratio='4'), TypeError, "mlp_ratio: got '4'"),
    (dict(drop_rate=-0.1), ValueError, r'drop_rate: got -0\.1, allowed: a number from 0 to 1'),
    (dict(attn_drop_rate=2), ValueError, 'attn_drop_rate: got 2'),
    (dict(drop_path_rate=1.5), ValueError, r'drop_path_rate: got 1\.5'),
    (dict(drop_path_rate=float('nan')), ValueError, 'drop_path_rate: got nan'),
    (dict(drop_path_rate='0.2'), TypeError, "drop_path_rate: got '0.2'"),
    (dict(out_indices=(0, 4)), ValueError, r'out_indices\[1\]: got 4, allowed: .* 0 to 3'),
    (dict(out_indices=()), ValueError, r'out_indices: got \(\)'),
    (dict(out_indices=(2, 1)), ValueError, r'out_indices: got \(2, 1\), allowed: increasing'),
    (dict(out_indices=(1, 1)), ValueError, r'out_indices: got \(1, 1\)'),
    (dict(out_indices=3), TypeError, 'out_indices: got 3'),
    (dict(frozen_stages=9), ValueError, 'frozen_stages: got 9, allowed: an integer from -1 to 4'),
    (dict(frozen_stages=-2), ValueError, 'frozen_stages: got -2'),
    (dict(norm_eval=1), TypeError, 'norm_eval: got 1'),
    (dict(with_cp='yes'), TypeError, "with_cp: got 'yes'"),
    (dict(with_cp=(0, 1)), TypeError, r'with_cp: got \(0, 1\) .*one per stage'),
    (dict(with_cp=[True, False]), ValueError, r'with_cp: got \[True, False\], 2 entries'),
    (dict(windows_at_once=0), ValueError, 'windows_at_once: got 0, allowed: an integer of at leas'),
    (dict(windows_at_once=2.0), TypeError, r'windows_at_once: got 2\.0'),
]


@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'), BAD_ARGUMENTS, ids=[str(row[0])[:60] for row in BAD_ARGUMENTS]
)
def test_errors_name_the_argument_its_value_and_what_is_allowed(kwargs, error, message):
    with pytest.raises(error, match=message) as caught:
        SwinTransformerV2(**{'arch': SMALL_ARCH, **kwargs})
    assert 'allowed' in str(caught.value)


BAD_INPUTS = [
    (torch.rand(3, 8, 8), ValueError, r'x: got shape \(3, 8, 8\)'),
    (torch.rand(1, 4, 8, 8), ValueError, r'x: got shape \(1, 4, 8, 8\), allowed: .*\(B, 3, H, W\)'),
    (torch.rand(1, 8, 8, 3), ValueError, r'x: got shape \(1, 8, 8, 3\)'),
    (torch.ones(1, 3, 8, 8, dtype=torch.uint8), TypeError, r'x: got torch\.uint8'),
    (torch.ones(1, 3, 8, 8, dtype=torch.long), TypeError, r'x: got torch\.int64'),
    (torch.rand(1, 3, 0, 8), ValueError, r'x: got an empty tensor of shape \(1, 3, 0, 8\)'),
    (torch.rand(0, 3, 8, 8), ValueError, 'x: got an empty tensor'),
    (torch.rand(1, 3, 8, 8).numpy(), TypeError, 'x: got a ndarray'),
    (None, TypeError, 'x: got a NoneType'),
    ([torch.rand(3, 8, 8)], TypeError, 'x: got a list'),
]


@pytest.mark.parametrize(
    ('x', 'error', 'message'), BAD_INPUTS, ids=[row[2][:40] for row in BAD_INPUTS]
)
def test_errors_name_the_input_and_what_is_allowed(small, x, error, message):
    with pytest.raises(error, match=message) as caught:
        small()(x)
    assert 'allowed' in str(caught.value)


@pytest.mark.parametrize('window', [8, (8, 8), [8, 8, 8, 8], [(8, 8), 8, [8, 8], 8]])
def test_windows_are_accepted_in_all_forms(window):
    model = SwinTransformerV2(SMALL_ARCH, window_size=window, pretrained_window_sizes=None)
    assert [stage.window for stage in model.layers] == [(8, 8)] * 4
    assert [stage.pretrained_window for stage in model.layers] == [(8, 8)] * 4
