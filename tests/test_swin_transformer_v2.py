"""The backbone's contract: outputs, names, arguments, freezing, precision."""

import copy
import re

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from swinv2_backbone import SwinTransformerV2
from tests.helpers.models import SMALL_ARCH, randomize_parameters

ALL_STAGES = (0, 1, 2, 3)


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(256, 256), (7, 150), (1, 1), (33, 65)])
def test_shapes_and_layout(small, size):
    model = small()
    maps = model(torch.randn(2, 3, *size))
    assert isinstance(maps, tuple)
    for out, channels, stride in zip(maps, (16, 32, 64, 128), (4, 8, 16, 32), strict=True):
        assert out.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
        assert out.is_contiguous()
    assert model.out_channels == (16, 32, 64, 128)
    assert model.out_strides == (4, 8, 16, 32)


@pytest.mark.parametrize('out_indices', [(0,), (1, 3), (2,), [0, 1, 2]])
def test_out_indices_choose_maps_and_leave_nothing_unused(small, out_indices):
    image = torch.randn(1, 3, 64, 48)
    whole = small()
    part = small(out_indices=out_indices)
    part.load_state_dict(
        {key: value for key, value in whole.state_dict().items() if key in part.state_dict()}
    )
    maps = part(image)
    expected = [whole(image)[i] for i in out_indices]
    for ours, theirs in zip(maps, expected, strict=True):
        assert torch.equal(ours, theirs)
    sum(out.square().mean() for out in maps).backward()
    assert [name for name, p in part.named_parameters() if p.grad is None] == []


def test_other_patch_sizes_and_channels(small):
    model = small(in_channels=5, patch_size=2)
    assert [tuple(out.shape[2:]) for out in model(torch.randn(1, 5, 33, 20))] == [
        (17, 10),
        (9, 5),
        (5, 3),
        (3, 2),
    ]
    assert model.out_strides == (2, 4, 8, 16)


@pytest.mark.parametrize(
    ('arch', 'millions'),
    [('tiny', 27.6), ('t', 27.6), ('small', 49.0), ('s', 49.0), ('base', 86.9), ('B', 86.9)],
)
def test_sizes_of_the_architectures(arch, millions):
    model = SwinTransformerV2(arch)
    count = sum(p.numel() for p in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.1)


def test_tiny_classifier_has_the_published_parameter_count():
    model = SwinTransformerV2('tiny', out_indices=(3,))
    head = 768 * 1000 + 1000
    count = sum(p.numel() for p in model.parameters()) + head
    assert count / 1e6 == pytest.approx(28.35, abs=0.005)


def test_parameter_names_are_the_official_ones():
    model = SwinTransformerV2(SMALL_ARCH)
    block = {
        f'attn.{name}'
        for name in (
            'qkv.weight',
            'q_bias',
            'v_bias',
            'logit_scale',
            'cpb_mlp.0.weight',
            'cpb_mlp.0.bias',
            'cpb_mlp.2.weight',
            'proj.weight',
            'proj.bias',
        )
    }
    block |= {
        f'{name}.{kind}'
        for name in ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2')
        for kind in ('weight', 'bias')
    }
    expected = {
        f'patch_embed.{name}.{kind}' for name in ('proj', 'norm') for kind in ('weight', 'bias')
    }
    expected |= {f'norm{i}.{kind}' for i in ALL_STAGES for kind in ('weight', 'bias')}
    expected |= {
        f'layers.{i}.blocks.{j}.{name}' for i in ALL_STAGES for j in (0, 1) for name in block
    }
    expected |= {
        f'layers.{i}.downsample.{name}'
        for i in (0, 1, 2)
        for name in ('reduction.weight', 'norm.weight', 'norm.bias')
    }
    assert set(model.state_dict()) == expected
    model(torch.randn(1, 3, 40, 40))
    assert set(model.state_dict()) == expected, 'a forward added something'


def test_pictures_in_a_batch_do_not_see_each_other(small):
    model, images = small(), torch.randn(3, 3, 72, 52)
    with torch.no_grad():
        together = model(images)
        alone = model(images[1:2])
    for batch, one in zip(together, alone, strict=True):
        torch.testing.assert_close(batch[1:2], one, atol=1e-5, rtol=1e-5)


def test_every_parameter_gets_a_gradient():
    model = randomize_parameters(SwinTransformerV2(SMALL_ARCH)).train()
    sum(out.square().mean() for out in model(torch.randn(2, 3, 200, 72))).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Scales above the clamp would have none; randomize_parameters() leaves all of them below it.
    assert without == []


def test_from_scratch_every_block_is_the_identity_and_learns():
    model = SwinTransformerV2(SMALL_ARCH, drop_path_rate=0.0).train()
    x = torch.randn(1, 3, 40, 40)
    tokens = model.patch_embed(x)
    assert torch.equal(model.layers[0](tokens), tokens)
    sum(out.square().mean() for out in model(x)).backward()
    assert all(
        block.norm1.weight.grad.any() and block.norm2.weight.grad.any()
        for stage in model.layers
        for block in stage.blocks
    )


def test_fake_tensors_do_not_stay_in_the_caches(small):
    from torch._subclasses.fake_tensor import FakeTensorMode

    model, x = small(), torch.randn(1, 3, 84, 52)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(x))
    assert all(type(out) is torch.Tensor and out.isfinite().all() for out in model(x))


def test_training_after_inference_mode(small):
    model, x = small(), torch.randn(1, 3, 76, 44)
    with torch.inference_mode():
        expected = model(x)
    sum(out.mean() for out in model(x)).backward()
    with torch.no_grad():
        for before, after in zip(expected, model(x), strict=True):
            assert torch.equal(before, after)


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_training_with_pads_stays_finite(dtype):
    model = randomize_parameters(SwinTransformerV2(SMALL_ARCH, drop_path_rate=0.3)).train()
    with torch.autocast('cpu', dtype):
        loss = sum(out.float().square().mean() for out in model(torch.randn(2, 3, 100, 76)))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_inference_at_200_is_finite_and_close(small, dtype):
    x = torch.rand(1, 3, 200, 200)
    with torch.no_grad():
        expected = small()(x)
        for out, wanted in zip(small().to(dtype)(x.to(dtype)), expected, strict=True):
            assert out.dtype == dtype
            assert out.isfinite().all()
            assert (out - wanted).abs().mean() < 0.1


# --- freezing and modes ---------------------------------------------------------------------------


@pytest.mark.parametrize('frozen', [-1, 0, 1, 3, 4])
def test_frozen_stages_count_as_mmdet_does(frozen):
    model = SwinTransformerV2(SMALL_ARCH, frozen_stages=frozen, drop_rate=0.1).train()
    prefixes = ['patch_embed.'] * (frozen >= 0)
    prefixes += [f'layers.{i}.' for i in range(frozen)] + [f'norm{i}.' for i in range(frozen)]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(prefixes)), name
    assert model.patch_embed.training == (frozen < 0)
    assert model.pos_drop.training == (frozen < 0)
    assert [stage.training for stage in model.layers] == [i >= frozen for i in range(4)]


def test_norm_eval_keeps_norms_in_eval_mode():
    model = SwinTransformerV2(SMALL_ARCH, norm_eval=True).train()
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert not any(m.training for m in norms)
    assert model.layers[0].training
    assert all(m.training for m in SwinTransformerV2(SMALL_ARCH).modules())


def test_frozen_stages_without_output():
    """RetinaNet's setting: the first stage is frozen and returns nothing."""
    model = SwinTransformerV2(SMALL_ARCH, out_indices=(1, 2, 3), frozen_stages=1).train()
    assert not any(p.requires_grad for p in model.layers[0].parameters())
    assert all(p.requires_grad for p in model.layers[1].parameters())


def test_drop_path_rises_from_zero():
    model = SwinTransformerV2(SMALL_ARCH, drop_path_rate=0.7)
    rates = [block.drop_path.drop_prob for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


def test_deepcopy_equals_the_original(small):
    model, x = small(), torch.randn(1, 3, 36, 36)
    with torch.no_grad():
        for ours, theirs in zip(copy.deepcopy(model)(x), model(x), strict=True):
            assert torch.equal(ours, theirs)


# --- registration ---------------------------------------------------------------------------------


def test_registered_once_in_the_root():
    assert MODELS.get('SwinTransformerV2') is SwinTransformerV2
    assert MODELS.get('swinv2_backbone.SwinTransformerV2') is SwinTransformerV2


# --- bad arguments --------------------------------------------------------------------------------

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
    (dict(mlp_ratio=0), ValueError, 'mlp_ratio: got 0, allowed: a number of at least 1 / 16'),
    (dict(mlp_ratio=0.01), ValueError, r'mlp_ratio: got 0\.01'),
    (dict(init_cfg='x.pth'), TypeError, "init_cfg: got 'x.pth', allowed: a dict with a 'type'"),
    (dict(init_cfg=['x.pth']), TypeError, r"init_cfg: got \['x\.pth'\]"),
    (dict(init_cfg=dict(checkpoint='x')), ValueError, 'init_cfg: got'),
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
    (dict(windows_at_once=0), ValueError, 'windows_at_once: got 0, allowed: an integer of at leas'),
    (dict(windows_at_once=2.0), TypeError, r'windows_at_once: got 2\.0'),
]


@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'), BAD_ARGUMENTS, ids=[str(row[0])[:60] for row in BAD_ARGUMENTS]
)
def test_bad_arguments_name_what_came_and_what_is_allowed(kwargs, error, message):
    with pytest.raises(error, match=message) as caught:
        SwinTransformerV2(**{'arch': SMALL_ARCH, **kwargs})
    assert re.search('allowed', str(caught.value))


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
def test_bad_inputs_name_what_came_and_what_is_allowed(small, x, error, message):
    with pytest.raises(error, match=message) as caught:
        small()(x)
    assert 'allowed' in str(caught.value)


@pytest.mark.parametrize('window', [8, (8, 8), [8, 8, 8, 8], [(8, 8), 8, [8, 8], 8]])
def test_windows_may_be_written_in_all_forms(window):
    model = SwinTransformerV2(SMALL_ARCH, window_size=window, pretrained_window_sizes=None)
    assert [stage.window for stage in model.layers] == [(8, 8)] * 4
    assert [stage.pretrained_window for stage in model.layers] == [(8, 8)] * 4
