"""The backbone's contract: outputs, names, freezing, registration."""

import copy
from collections import Counter

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone import swin_transformer_v2 as model_module
from swinv2_backbone.layers.blocks import SwinTransformerBlock
from tests.helpers.models import SMALL_ARCH, needs_compile, randomize_parameters
from tests.helpers.tolerance import assert_equal_to_rounding

ALL_STAGES = (0, 1, 2, 3)


# --- outputs and parameters -----------------------------------------------------------------------


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
def test_out_indices_choose_maps_and_leave_no_parameter_unused(small, out_indices):
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


@pytest.mark.parametrize(('arch', 'millions'), [('tiny', 27.6), ('small', 49.0), ('base', 86.9)])
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
    assert set(model.state_dict()) == expected, 'as before the forward'


def test_every_parameter_gets_a_gradient():
    model = randomize_parameters(SwinTransformerV2(SMALL_ARCH)).train()
    sum(out.square().mean() for out in model(torch.randn(2, 3, 200, 72))).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Scales above the clamp would have none; randomize_parameters() leaves all of them below it.
    assert without == []


def test_zero_initialized_post_norms_get_a_gradient():
    model = SwinTransformerV2(SMALL_ARCH, drop_path_rate=0.0).train()
    sum(out.square().mean() for out in model(torch.randn(1, 3, 40, 40))).backward()
    assert all(
        block.norm1.weight.grad.any() and block.norm2.weight.grad.any()
        for stage in model.layers
        for block in stage.blocks
    )


def test_caches_keep_no_fake_tensors(small):
    from torch._subclasses.fake_tensor import FakeTensorMode

    model, x = small(), torch.randn(1, 3, 84, 52)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(x))
    assert all(type(out) is torch.Tensor and out.isfinite().all() for out in model(x))


def test_inference_mode_does_not_prevent_training(small):
    model, x = small(), torch.randn(1, 3, 76, 44)
    with torch.inference_mode():
        expected = model(x)
    sum(out.mean() for out in model(x)).backward()
    with torch.no_grad():
        for before, after in zip(expected, model(x), strict=True):
            assert torch.equal(before, after)


class Copies(TorchDispatchMode):
    """Records the shapes of all tensors that are copied."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_):
            self.shapes.append(tuple(args[0].shape))
        return out


def test_channels_last_images_give_channels_last_maps_without_a_copy(small):
    model, image = small().double(), torch.randn(2, 3, 64, 96).double()
    with torch.no_grad():
        expected = model(image)
        with Copies() as copies:
            maps = model(image.to(memory_format=torch.channels_last))
        with Copies() as copies_when_contiguous:
            assert all(out.is_contiguous() for out in model(image))
    assert_equal_to_rounding(maps, expected)
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in maps)
    # What is left is the cut of the patch mergings, (B, H/2, W/2, column, row, C).
    assert [len(shape) for shape in copies.shapes] == 3 * [6]
    assert len(copies_when_contiguous.shapes) > len(copies.shapes)


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


def test_frozen_stages_may_have_no_output():
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


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1,)])
def test_stages_that_recompute(small, monkeypatch, out_indices):
    """with_cp per stage: these blocks run twice, and the gradients are those of all or none."""
    image = torch.randn(2, 3, 72, 40).double()
    grads, calls = [], Counter()
    forward = SwinTransformerBlock.forward

    def count(block, x, *args):
        calls[x.shape[-1]] += 1
        return forward(block, x, *args)

    for with_cp in (False, (True, False, True, False), True):
        calls.clear()
        model = small(with_cp=with_cp, out_indices=out_indices, drop_path_rate=0.2)
        model = model.double().train()
        torch.manual_seed(1)  # the same paths are dropped
        with monkeypatch.context() as patch:
            patch.setattr(SwinTransformerBlock, 'forward', count)
            sum(out.square().mean() for out in model(image)).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
        if isinstance(with_cp, tuple):
            built = zip(SMALL_ARCH['depths'], with_cp, model.num_features, strict=False)
            assert calls == {dim: depth * (1 + again) for depth, again, dim in built}
    assert_equal_to_rounding(grads[1], grads[0])
    assert_equal_to_rounding(grads[2], grads[0])


# --- the log --------------------------------------------------------------------------------------


@pytest.fixture
def logged(monkeypatch):
    """What is logged, as in a process that has logged nothing yet."""
    lines = []
    monkeypatch.setattr(model_module, '_logged', set())
    monkeypatch.setattr(model_module, 'print_log', lambda text, **_: lines.append(text))
    return lines


def test_the_attention_that_runs_is_logged_once(monkeypatch, logged, small):
    model, image = small(), torch.randn(1, 3, 32, 32)
    for each in (model, model.train(), small()):
        each(image)
    sdpa = 'window attention: sdpa (the Triton kernels are for NVIDIA GPUs, got cpu)'
    assert logged == [sdpa]
    monkeypatch.setenv('SWINV2_ATTENTION', 'reference')
    model(image), model(image)
    assert [line.partition(' (')[0] for line in logged[1:]] == ['window attention: reference']
    torch.export.export(model.eval(), (image,))
    assert len(logged) == 2


@needs_compile
def test_a_compiled_model_logs_it_once(logged, small):
    model = small(out_indices=(0,)).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    with torch.no_grad():
        for size in (32, 40, 52):  # Each is compiled anew, or as a range of sizes.
            compiled(torch.randn(1, 3, size, size))
    torch._dynamo.reset()
    assert logged == ['window attention: sdpa (the Triton kernels are for NVIDIA GPUs, got cpu)']
