"""One test for each defect that was found in another port of SwinV2; the name is what is right.

test_mutations.py puts each of the defects into a copy of the package, and the test here must fail.
"""

from pathlib import Path
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.checkpoints import CheckpointError
from swinv2_backbone.layers import attention, windows
from swinv2_backbone.layers.attention import WindowAttention, attention_constants
from swinv2_backbone.layers.blocks import SwinTransformerBlock
from swinv2_backbone.layers.position_bias import make_cpb_mlp, position_bias, relative_coords
from swinv2_backbone.layers.reference_attention import cosine_attention
from swinv2_backbone.layers.windows import WindowGrid
from tests.helpers.checkpoint_files import official_state, save_official
from tests.helpers.dense_reference import dense_forward
from tests.helpers.models import SMALL_ARCH, randomize_parameters
from tests.helpers.tolerance import assert_equal_to_rounding

CONFIGS = Path(__file__).parents[2] / 'configs'


def assert_equals_reference(model, size, window):
    model, image = model.double(), torch.randn(2, 3, *size).double()
    pairs = [(window, window)] * 4
    expected = dense_forward(
        model.state_dict(),
        image,
        SMALL_ARCH['depths'],
        SMALL_ARCH['num_heads'],
        pairs,
        [(8, 8)] * 4,
    )
    with torch.no_grad():
        assert_equal_to_rounding(model(image), expected)


def test_drop_path_follows_the_post_norm():
    """mmpretrain applies drop path before the post-norm."""
    block = randomize_parameters(SwinTransformerBlock(16, 2, drop_path=0.5)).double()
    grid = WindowGrid.for_map((8, 8), (8, 8), shifted=False)
    x = torch.randn(64, 8, 8, 16).double()
    [constants] = attention_constants([block.attn], (8, 8), (8, 8))
    attended = block.norm1(block.attn(x, grid, constants))
    block.mlp.fc2.weight.data.zero_()
    block.mlp.fc2.bias.data.zero_()
    block.norm2.bias.data.zero_()  # Now the second branch is 0.
    change = block.train()(x, grid, constants) - x
    dropped = (change == 0).flatten(1).all(1)
    assert 0 < dropped.sum() < 64, 'a dropped branch leaves exactly nothing'
    assert_equal_to_rounding(change[~dropped], 2 * attended[~dropped])


def test_post_norms_are_zero_initialized():
    """mmpretrain and torchvision start with weight 1."""
    model = SwinTransformerV2(SMALL_ARCH).train()
    blocks = [block for stage in model.layers for block in stage.blocks]
    for block in blocks:
        for norm in (block.norm1, block.norm2):
            assert not norm.weight.any()
            assert not norm.bias.any()
    x = torch.randn(1, 9, 9, 16)
    assert torch.equal(model.layers[0](x), x)


def test_train_returns_the_model():
    """It returns None in the Swin backbones of mmdet, mmseg and mmpretrain."""
    model = SwinTransformerV2(SMALL_ARCH)
    assert model.train() is model
    assert model.eval() is model


def test_patch_merging_norm_is_loaded_as_it_is(tmp_path):
    """The Battle-of-the-Backbones port permutes it, as for V1."""
    source = randomize_parameters(SwinTransformerV2(SMALL_ARCH))
    model = SwinTransformerV2(
        SMALL_ARCH,
        init_cfg=dict(
            type='Pretrained', checkpoint=save_official(source, tmp_path / 'official.pth')
        ),
    )
    model.init_weights()
    for key, value in official_state(source).items():
        if '.downsample.' in key:
            assert torch.equal(model.state_dict()[key], value), key


def test_each_stage_has_its_own_pretrained_window():
    """The Battle-of-the-Backbones port passes the whole list to every stage."""
    per_stage = [16, 12, (6, 4), 8]
    model = SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes=per_stage)
    assert [stage.pretrained_window for stage in model.layers] == [
        (16, 16),
        (12, 12),
        (6, 4),
        (8, 8),
    ]


def test_padding_precedes_the_roll():
    """timm with dynamic image size pads after the roll (#2438)."""
    grid = WindowGrid.for_map((9, 9), (8, 8), shifted=True)
    rows = torch.arange(9.0)[:, None].expand(9, 9)[None, ..., None]
    first_window = grid.split(rows + 1)[0].reshape(8, 8)[:, 0]
    # Rolled up by 4: rows 4 to 8, then padding (0); row 0 must not follow row 8.
    assert first_window.tolist() == [5, 6, 7, 8, 9, 0, 0, 0]


def test_window_and_shift_follow_the_size_of_the_map(small, implementation):
    """transformers and the official code fix them in the constructor."""
    model = small()
    for size in ((128, 128), (40, 200), (32, 32), (264, 72), (128, 128)):
        assert_equals_reference(model, size, 8)


@pytest.mark.parametrize('window', [8, 5, (3, 7), 16], ids=str)
def test_padded_tokens_are_masked(small, monkeypatch, window):
    """No other port masks them as keys.

    (tests/test_window_transfer.py has the same for the fused attention.)
    """
    monkeypatch.setenv('SWINV2_ATTENTION', 'reference')
    model, image = small(window_size=window).double(), torch.randn(2, 3, 100, 136).double()
    padded = []

    def pad(x, widths):
        padded.append(widths)
        return torch.nn.functional.pad(x, widths, value=1e4)

    with torch.no_grad():
        expected = model(image)
        # Only the padding of windows: that of patch embed and patch merging is 0 by definition.
        monkeypatch.setattr(windows, 'F', mock.Mock(pad=pad))
        assert_equal_to_rounding(model(image), expected)
    assert padded


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_zero_keys_of_padding_stay_finite(small, implementation, dtype):
    """timm and transformers normalize them to 0 / 0 in float16."""
    image = torch.randn(1, 3, 200, 200)
    with torch.no_grad():
        assert all(out.isfinite().all() for out in small().to(dtype)(image.to(dtype)))
    model = small().train()
    with torch.autocast('cpu', dtype):
        sum(out.float().square().mean() for out in model(image)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_masked_keys_get_no_weight():
    """All other ports add -100, which a large logit outweighs."""
    q = torch.tensor([1.0, 0.0]).expand(1, 1, 2, 2)
    k = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])[None, None]  # cosines -1 and 1
    v = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, None]
    bias = torch.tensor([[0.0, 16.0], [0.0, 16.0]])[None]
    only_the_first = torch.tensor([[True, False], [True, False]])[None]
    out = cosine_attention(q, k, v, torch.full((1, 1, 1), 100.0), bias, only_the_first)
    assert torch.equal(out, torch.tensor([1.0, 0.0]).expand(1, 1, 2, 2))


def test_masks_are_built_once_per_size(small, implementation, monkeypatch):
    """mmpretrain and most other ports build them in every block of every forward."""
    model, image = small(), torch.randn(1, 3, 92, 116)
    model(image)
    for builder in ('_axis_labels', '_axis_groups'):
        monkeypatch.setattr(windows, builder, lambda *_, **__: pytest.fail('a mask was built'))
    assert len(model(image)) == 4


def test_position_bias_is_computed_once_in_inference(small, monkeypatch):
    """mmpretrain and most other ports compute it in every block of every forward."""
    model, image = small(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        model(image)
        monkeypatch.setattr(
            attention,
            'position_bias_tables',
            lambda *_: pytest.fail('a position bias was computed again'),
        )
        assert len(model(image)) == 4


@pytest.mark.parametrize(
    'config',
    ['segmentation/upernet_swinv2_tiny_ade20k.py', 'detection/mask_rcnn_swinv2_tiny_coco.py'],
)
def test_norms_biases_and_scales_do_not_decay(config):
    """In the configs of mmpretrain, logit_scale, cpb_mlp, q_bias and v_bias decay."""
    optim_wrapper = Config.fromfile(CONFIGS / config).optim_wrapper
    model = SwinTransformerV2(SMALL_ARCH)
    groups = build_optim_wrapper(model, optim_wrapper).param_groups
    decay = {id(group['params'][0]): group['weight_decay'] for group in groups}
    decaying = set()
    for name, parameter in model.named_parameters():
        if decay[id(parameter)]:
            decaying.add(name.split('.', 4)[-1] if 'blocks' in name else name)
    assert decaying == {
        'attn.qkv.weight',
        'attn.proj.weight',
        'mlp.fc1.weight',
        'mlp.fc2.weight',
        'patch_embed.proj.weight',
        *(f'layers.{i}.downsample.reduction.weight' for i in range(3)),
    }


def test_checkpoint_that_does_not_match_is_refused(tmp_path):
    """Swin of mmdet, mmseg and mmpretrain logs a line and trains from random weights."""
    path = tmp_path / 'v1.pth'
    v1 = {
        key.replace('cpb_mlp.2.weight', 'relative_position_bias_table'): value
        for key, value in official_state(SwinTransformerV2(SMALL_ARCH)).items()
        if 'cpb_mlp.0' not in key and 'logit_scale' not in key
    }
    model = SwinTransformerV2(SMALL_ARCH, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    torch.save({'model': v1}, path)
    with pytest.raises(CheckpointError, match='Swin Transformer V1'):
        model.init_weights()
    part = official_state(SwinTransformerV2(SMALL_ARCH))
    del part['layers.2.blocks.1.mlp.fc1.weight']
    torch.save({'model': part}, path)
    with pytest.raises(CheckpointError, match=r'lacks: layers\.2\.blocks\.1\.mlp\.fc1\.weight'):
        model.init_weights()


def test_wrapped_official_file_is_loaded(tmp_path):
    """Swin of mmdet, mmseg and mmpretrain finds no weights in {'model': ...}."""
    source = randomize_parameters(SwinTransformerV2(SMALL_ARCH))
    model = SwinTransformerV2(
        SMALL_ARCH,
        init_cfg=dict(
            type='Pretrained', checkpoint=save_official(source, tmp_path / 'official.pth')
        ),
    )
    model.init_weights()
    for key, value in source.state_dict().items():
        if not key.startswith(('norm0', 'norm1', 'norm2')):
            assert torch.equal(model.state_dict()[key], value), key


def test_window_of_one_token_is_finite():
    """The official code, timm, mmpretrain and torchvision divide by zero."""
    for window, pretrained in (((1, 1), (1, 1)), ((5, 5), (1, 1)), ((1, 7), (1, 8))):
        assert relative_coords(window, pretrained).isfinite().all()
    grid = WindowGrid.for_map((1, 1), (1, 1), shifted=False)
    attention = WindowAttention(8, 2)
    [constants] = attention_constants([attention], (1, 1), (1, 1))
    out = attention(torch.randn(3, 1, 1, 8), grid, constants)
    assert out.isfinite().all()


def test_window_change_does_not_stretch_the_bias():
    """With the pretrained_window_sizes of 0 in its config, transformers stretches it."""
    cpb_mlp = randomize_parameters(make_cpb_mlp(2)).double()
    at_8 = position_bias(cpb_mlp, (8, 8), (8, 8)).reshape(2, 8, 8, 8, 8)
    at_16 = position_bias(cpb_mlp, (16, 16), (8, 8)).reshape(2, 16, 16, 16, 16)
    assert_equal_to_rounding(at_8, at_16[:, :8, :8, :8, :8])
    with pytest.raises(ValueError, match='stretch'):
        SwinTransformerV2(SMALL_ARCH, pretrained_window_sizes=[0, 0, 0, 0])
