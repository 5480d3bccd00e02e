"""`init_cfg=dict(type='Pretrained')`: what loads, what is logged, what is refused."""

import logging
import re

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.arguments import ARCHITECTURES
from swinv2_backbone.checkpoints import CheckpointError, Converted
from swinv2_backbone.checkpoints.architecture import expected_parameters
from swinv2_backbone.checkpoints.loading import check_weights, is_left_out, is_output_norm
from tests.helpers.checkpoint_files import (
    assert_loaded,
    assert_refused,
    official_state,
    random_model,
    save_official,
)
from tests.helpers.checkpoint_files import load as load_from
from tests.helpers.models import SMALL_ARCH
from tests.parity.implementations import NAMES
from tests.parity.recorded import ARCH, load, state_of


def build(checkpoint, **kwargs):
    return SwinTransformerV2(
        SMALL_ARCH, **kwargs, init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint))
    )


@pytest.fixture
def log_lines():
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.mark.parametrize('wrapper', ['model', 'state_dict', None])
def test_an_official_file_loads_and_one_line_is_logged(tmp_path, wrapper, log_lines):
    original, path = random_model(), tmp_path / 'official.pth'
    state = official_state(original)
    torch.save({wrapper: state, 'epoch': 300} if wrapper else state, path)
    model = build(path)
    model.init_weights()
    assert_loaded(model, original)
    assert torch.equal(model.norm0.weight, torch.ones(16))
    [line] = [line for line in log_lines if 'loaded' in line and 'parameters from' in line]
    count = len(model.state_dict()) - 6
    assert line == (
        f'SwinTransformerV2: loaded {count} parameters from {path} (official format); newly '
        'initialized: norm0, norm1, norm2; dropped: relative_coords_table (8), '
        'relative_position_index (8), attn_mask (4), head; pretrained window sizes: 8 '
        '(source: relative_coords_table)'
    )


def test_our_file_of_a_segmentor_loads(tmp_path):
    original, path = random_model(), tmp_path / 'iter_100.pth'
    state = {f'backbone.{key}': value for key, value in original.state_dict().items()}
    torch.save({'state_dict': {**state, 'decode_head.conv.weight': torch.ones(3)}}, path)
    model = build(path)
    model.init_weights()
    assert_loaded(model, original, new=('nothing',))


def test_a_prefix_chooses_among_several_models(tmp_path):
    original, path = random_model(), tmp_path / 'two.pth'
    torch.save({f'teacher.{key}': value for key, value in official_state(original).items()}, path)
    model = build(path)
    model.init_cfg['prefix'] = 'teacher'
    model.init_weights()
    assert_loaded(model, original)
    model = build(path)
    model.init_cfg['prefix'] = 'student.'
    with pytest.raises(CheckpointError, match=r"no key starts with prefix='student\.'"):
        model.init_weights()


def test_stages_that_are_left_out_are_dropped_and_logged(tmp_path, log_lines):
    original = random_model()
    model = build(save_official(original, tmp_path / 'official.pth'), out_indices=(0, 1))
    model.init_weights()
    assert_loaded(model, original, new=('norm0', 'norm1'))
    assert any(
        'layers.1 (3)' in line and 'layers.2 (' in line and 'norm3' in line for line in log_lines
    )


def test_a_backbone_inside_another_module_loads(tmp_path):
    class Segmentor(BaseModule):
        def __init__(self, checkpoint):
            super().__init__()
            self.backbone = build(checkpoint)

    original = random_model()
    segmentor = Segmentor(save_official(original, tmp_path / 'official.pth'))
    segmentor.init_weights()
    assert_loaded(segmentor.backbone, original)


def test_other_initializers_run_first(tmp_path):
    original = random_model()
    model = build(save_official(original, tmp_path / 'official.pth'))
    model.init_cfg = [model.init_cfg, dict(type='Constant', layer='LayerNorm', val=7.0)]
    model.init_weights()
    assert_loaded(model, original)
    assert torch.equal(model.norm0.weight, torch.full((16,), 7.0))
    assert model.init_cfg[0]['type'] == 'Pretrained'


def test_a_half_precision_file_loads_into_float32(tmp_path):
    original, path = random_model(), tmp_path / 'half.pth'
    torch.save(
        {
            'model': {
                key: value.half() if value.is_floating_point() else value
                for key, value in official_state(original).items()
            }
        },
        path,
    )
    model = build(path)
    model.init_weights()
    assert model.patch_embed.proj.weight.dtype == torch.float32
    torch.testing.assert_close(
        model.patch_embed.proj.weight, original.patch_embed.proj.weight.half().float()
    )


@pytest.mark.parametrize('cfg', [dict(checkpoin='x.pth'), dict(checkpoint='x.pth', strict=False)])
def test_unknown_keys_of_init_cfg_are_refused(cfg):
    with pytest.raises(TypeError, match='unexpected keyword argument'):
        SwinTransformerV2(SMALL_ARCH, init_cfg=dict(type='Pretrained', **cfg)).init_weights()


@pytest.mark.parametrize('init_type', ['Pretrained', 'mmengine.Pretrained', 'PretrainedInit'])
def test_every_spelling_of_pretrained_is_strict(tmp_path, init_type):
    torch.save({'model': {'x': torch.ones(2)}}, tmp_path / 'x.pth')
    model = build(tmp_path / 'x.pth')
    model.init_cfg['type'] = init_type
    with pytest.raises(CheckpointError, match='not a SwinV2 file'):
        model.init_weights()


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(checkpoint=''), "checkpoint: got '', allowed: a path"),
        (dict(checkpoint=3), 'checkpoint: got 3, allowed: a path'),
        (dict(checkpoint='x', prefix=3), 'prefix: got 3, allowed: a string or None'),
        (dict(checkpoint='x', sha256='0123'), "sha256: got '0123', allowed: 8 to 64 hex digits"),
        (
            dict(checkpoint='x', adapt_channels='mean'),
            "adapt_channels: got 'mean', allowed: 'repeat'",
        ),
        (dict(checkpoint='x', map_location='cuda'), "map_location: got 'cuda', allowed: 'cpu'"),
    ],
)
def test_malformed_settings_of_init_cfg_are_refused(settings, message):
    model = SwinTransformerV2(SMALL_ARCH, init_cfg=dict(type='Pretrained', **settings))
    with pytest.raises((TypeError, ValueError), match=f'init_cfg: {message}'):
        model.init_weights()


# --- another number of input channels -------------------------------------------------------------


def weights_for(path, in_channels, how):
    return load_from(path, in_channels=in_channels, init_cfg=dict(adapt_channels=how))


@pytest.mark.parametrize('in_channels', [2, 4, 7])
def test_channels_are_repeated_in_turn_and_scaled(tmp_path, in_channels, log_lines):
    original, path = random_model(), tmp_path / 'rgb.pth'
    save_official(original, path)
    model = weights_for(path, in_channels, 'repeat')
    assert_loaded(model, original, new=('norm0', 'norm1', 'norm2', 'patch_embed.proj.weight'))
    rgb, ours = original.patch_embed.proj.weight, model.patch_embed.proj.weight
    for channel in range(in_channels):
        torch.testing.assert_close(ours[:, channel], rgb[:, channel % 3] * 3 / in_channels)
    assert f'3 input channels adapted to {in_channels}' in ''.join(log_lines)


def test_one_channel_gets_the_sum(tmp_path):
    original, path = random_model().double(), tmp_path / 'rgb.pth'
    save_official(original, path)
    model = weights_for(path, 1, 'repeat').double()
    gray = torch.rand(1, 1, 32, 40, dtype=torch.double)
    expected = original.patch_embed(gray.expand(-1, 3, -1, -1))
    # The parameters were rounded to float32 once more: 8 u of the largest value.
    bound = 8 * torch.finfo(torch.float32).eps * expected.abs().max().item()
    torch.testing.assert_close(model.patch_embed(gray), expected, rtol=0, atol=bound)


def test_channels_of_zeros_change_no_features(tmp_path):
    original, path = random_model().eval(), tmp_path / 'rgb.pth'
    save_official(original, path)
    model = weights_for(path, 5, 'zero').eval()
    images = torch.rand(1, 5, 32, 40)
    assert not model.patch_embed.proj.weight[:, 3:].any()
    assert torch.equal(model.patch_embed.proj.weight[:, :3], original.patch_embed.proj.weight)
    torch.testing.assert_close(model.patch_embed(images), original.patch_embed(images[:, :3]))


@pytest.mark.parametrize('how', ['repeat', 'zero'])
def test_equal_channels_stay_as_they_are(tmp_path, how):
    original, path = random_model(), tmp_path / 'rgb.pth'
    save_official(original, path)
    assert_loaded(weights_for(path, 3, how), original)


def test_half_precision_is_summed_in_float32(tmp_path):
    path, state = tmp_path / 'half.pth', official_state(random_model())
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in state.items()
    }
    torch.save({'model': state}, path)
    summed = state['patch_embed.proj.weight'].float().sum(1, keepdim=True)
    torch.testing.assert_close(weights_for(path, 1, 'repeat').patch_embed.proj.weight, summed)


@pytest.mark.parametrize('in_channels', [1, 4])
def test_another_number_of_channels_is_refused_with_the_way_out(tmp_path, in_channels):
    path = tmp_path / 'rgb.pth'
    save_official(random_model(), path)
    message = r"another in_channels\. `adapt_channels='repeat'` in init_cfg adapts the filters"
    with pytest.raises(CheckpointError, match=message):
        load_from(path, in_channels=in_channels)


def test_zeros_for_fewer_channels_than_the_file_has_are_refused(tmp_path):
    path = tmp_path / 'rgb.pth'
    save_official(random_model(), path)
    with pytest.raises(
        CheckpointError, match="has 3 input channels, the backbone 2: adapt_channels='zero' adds"
    ):
        weights_for(path, 2, 'zero')


# --- files of every format whose weights do not fit -----------------------------------------------


def find(state, ending):
    return next(key for key in state if key.endswith(ending))


def fc1(state):
    """The first linear layer of the MLP of the third stage, in any format."""
    endings = (
        '2.blocks.0.mlp.fc1.weight',
        '2.blocks.0.intermediate.dense.weight',
        'features.5.0.mlp.0.weight',
        '2.blocks.0.ffn.layers.0.0.weight',
    )
    return next(key for ending in endings for key in state if key.endswith(ending))


def remove(state):
    key = fc1(state)
    del state[key]
    return f'lacks: .*{key}'


def rename(state):
    key = fc1(state)
    state[key.replace('weight', 'wieght')] = state.pop(key)
    return f'does not have: {key.replace("weight", "wieght")}'


def remove_final_norm(state):
    """Half of the last norm, or of the first where a headless model has no last."""
    key = next(
        (
            key
            for key in state
            if key.endswith(('norm3.weight', '.layernorm.weight'))
            or key in ('norm.weight', 'layernorm.weight')
        ),
        None,
    )
    key = key or find(
        state,
        'patch_embed.norm.weight' if 'layers_0' in str(state.keys()) else 'embeddings.norm.weight',
    )
    del state[key]
    return f'lacks: .*{key}'


def leading_zero(state):
    key = find(state, 'logit_scale')
    other = re.sub(r'\.0\.', '.00.', key, count=1)
    state[other] = state[key].clone()
    return f'does not have: {other}'


def beyond_float32(state):
    key = fc1(state)
    state[key] = state[key].to(torch.float64) * 1e200
    return f'NaN or infinity in {key}'


def transpose(state):
    key = fc1(state)
    state[key] = state[key].t().contiguous()
    return rf'shapes differ: {key} \(32, 128\) \(backbone: \(128, 32\)\)'


def one_block_too_many(state):
    for key in [key for key in state if '2.blocks.1.' in key or 'features.5.1.' in key]:
        more = key.replace('2.blocks.1.', '2.blocks.2.').replace('features.5.1.', 'features.5.2.')
        state[more] = state[key].clone()
    return r'the backbone lacks: .*The file holds a model of .*\(2, 1, 3, 1\)'


def a_stage_is_missing(state):
    for key in [key for key in state if '3.blocks.' in key or 'features.7.' in key]:
        del state[key]
    return r'lacks: .*The file holds a model of .*\(2, 1, 2, 0\)'


CHANGES = [
    remove,
    remove_final_norm,
    rename,
    leading_zero,
    transpose,
    one_block_too_many,
    a_stage_is_missing,
]


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize('name', NAMES)
def test_weights_that_do_not_fit_are_refused(tmp_path, name, change):
    state = state_of(load(name))
    message = change(state)
    torch.save({'state_dict': state}, tmp_path / 'x.pth')
    assert_refused(tmp_path / 'x.pth', CheckpointError, message)


@pytest.mark.parametrize('setting', [dict(in_channels=1), dict(patch_size=2), dict(mlp_ratio=2)])
def test_a_file_made_with_another_setting_is_refused(tmp_path, setting):
    torch.save(
        SwinTransformerV2(ARCH, pretrained_window_sizes=4, **setting).state_dict(),
        tmp_path / 'other.pth',
    )
    assert_refused(
        tmp_path / 'other.pth',
        CheckpointError,
        f'shapes differ: .* The file was made with another {next(iter(setting))}',
    )


@pytest.mark.parametrize(
    ('file', 'backbone'), [('base', 'tiny'), ('tiny', 'small'), ('small', 'base')]
)
def test_another_architecture_is_named(file, backbone):
    theirs, ours = (expected_parameters(ARCHITECTURES[name]) for name in (file, backbone))
    message = f"The file holds '{file}', the backbone is '{backbone}'"
    with pytest.raises(CheckpointError, match=f'checkpoint x .official format.*{message}'):
        check_weights(Converted('official', '', theirs), ours, 'x')


# --- which parameters a file may lack or have in excess -------------------------------------------


def test_output_norms_are_recognized_by_name():
    assert is_output_norm('norm0.weight')
    assert is_output_norm('norm3.bias')
    for name in ('norm4.weight', 'norm.weight', 'patch_embed.norm.weight', 'norm0'):
        assert not is_output_norm(name)


@pytest.mark.parametrize('num_stages', [1, 2, 3, 4])
def test_what_a_backbone_of_fewer_stages_lacks_is_left_out(num_stages):
    model = SwinTransformerV2(SMALL_ARCH, out_indices=(num_stages - 1,))
    own = model.state_dict().keys()
    for name in expected_parameters(SMALL_ARCH):
        if name not in own:
            assert is_left_out(name, num_stages), name
    for name in ('layers.4.blocks.0.norm1.weight', 'layers.0.x', 'patch_embed.x', 'head.weight'):
        assert not is_left_out(name, num_stages), name
