"""State dicts to the backbone's names and back: dict in, dict out."""

import pytest
import torch

from swinv2_backbone.checkpoints import FORMATS, CheckpointError, from_backbone, to_backbone
from swinv2_backbone.checkpoints.state_dicts import export_buffers, official_buffers
from tests.helpers.checkpoint_files import headless_state, official_state, random_model
from tests.parity.recorded import load, state_of

KEY = 'layers.1.blocks.0.mlp.fc1.weight'


def test_an_official_classifier_is_taken_apart():
    model = random_model()
    state = official_state(model)
    converted = to_backbone({'model': state, 'epoch': 300}, 'x')
    assert (converted.format, converted.prefix) == ('official', '')
    assert converted.state.keys() == headless_state(model).keys()
    assert all(torch.equal(converted.state[key], v) for key, v in headless_state(model).items())
    assert converted.head.keys() == {'head.weight', 'head.bias'}
    assert converted.pretrained_window_sizes == dict.fromkeys(range(4), (8, 8))
    assert converted.window_source == 'relative_coords_table'
    assert converted.window_size == (8, 8)
    # Every key of the file is either used or listed as dropped.
    used = {converted.in_file(key) for key in converted.state}
    assert used | set(converted.dropped) == state.keys()
    assert not used & set(converted.dropped)


def test_only_keys_with_the_prefix_are_used():
    model = random_model()
    states = {'teacher': model.state_dict(), 'student': random_model(seed=1).state_dict()}
    content = {
        f'{who}.{key}': value for who, state in states.items() for key, value in state.items()
    }
    content['head.fc.weight'] = torch.ones(2, 128)  # outside of the prefix
    for prefix in ('teacher', 'teacher.'):
        converted = to_backbone(content, 'x', prefix)
        assert converted.prefix == 'teacher.'
        assert all(torch.equal(converted.state[key], v) for key, v in model.state_dict().items())
        assert (converted.head, converted.in_file('norm3.bias')) == ({}, 'teacher.norm3.bias')
        outside = {key for key in content if not key.startswith('teacher.')}
        assert set(converted.dropped) == outside
    with pytest.raises(
        CheckpointError, match=r"checkpoint x: no key starts with prefix='nobody\.'"
    ):
        to_backbone(content, 'x', 'nobody')


def test_names_inside_a_prefix_are_reported_in_full():
    content = {f'teacher.{key}': value for key, value in random_model().state_dict().items()}
    content['teacher.surprise'] = torch.ones(2)
    with pytest.raises(CheckpointError, match=r'does not have: teacher\.surprise'):
        to_backbone(content, 'x', 'teacher')


def test_the_head_of_the_same_parent_is_taken():
    model = random_model()
    state = from_backbone(
        headless_state(model),
        {'head.weight': torch.ones(10, 128), 'head.bias': torch.ones(10)},
        FORMATS['mmpretrain'],
    )
    content = {f'student.{key}': value for key, value in state.items()}
    content |= {'teacher.head.fc.weight': torch.zeros(10, 128)}
    converted = to_backbone(content, 'x')
    assert converted.prefix == 'student.backbone.'
    assert converted.head.keys() == {'head.weight', 'head.bias'}
    assert converted.head['head.weight'].all()


def test_averaged_weights_are_listed_as_dropped():
    content = {'state_dict': official_state(random_model())}
    content['state_dict_ema'] = official_state(random_model(seed=5))
    converted = to_backbone(content, 'x')
    assert converted.dropped[-1] == 'state_dict_ema'
    assert torch.equal(converted.state[KEY], content['state_dict'][KEY])


def test_the_older_names_of_simmim_are_read():
    model = random_model()
    state = {
        f'encoder.{key.replace("cpb_mlp", "rpe_mlp")}': value
        for key, value in official_state(model).items()
        if not key.startswith('head')
    }
    rest = {'encoder.mask_token': torch.zeros(1, 1, 16), 'decoder.0.weight': torch.ones(2, 2)}
    converted = to_backbone({'model': state | rest, 'epoch': 799}, 'x')
    assert all(torch.equal(converted.state[key], v) for key, v in headless_state(model).items())
    assert rest.keys() <= set(converted.dropped)


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        ([1.0], 'is a list, not a tensor'),
        (torch.ones(128, 32).to_sparse(), 'is a torch.sparse_coo tensor, not a dense one'),
        (torch.ones(128, 32, device='meta'), 'is a meta tensor, not a dense one'),
        (torch.ones(128, 32).long(), 'is torch.int64, not floating point'),
        (torch.ones(128, 32).to(torch.complex64), 'is torch.complex64, not floating point'),
    ],
)
def test_values_that_are_not_floating_point_tensors_are_refused(value, message):
    state = official_state(random_model()) | {KEY: value}
    with pytest.raises(CheckpointError, match=f'checkpoint x: {KEY} {message}'):
        to_backbone(state, 'x')


@pytest.mark.filterwarnings('ignore:torch.quantize_per_tensor')
def test_quantized_tensors_are_refused():
    value = torch.quantize_per_tensor(torch.ones(128, 32), 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointError, match=f'{KEY} is a quantized tensor'):
        to_backbone(official_state(random_model()) | {KEY: value}, 'x')


@pytest.mark.parametrize(
    'value',
    [
        torch.full((128, 32), torch.nan),
        torch.full((128, 32), torch.inf),
        torch.full((128, 32), 1e200, dtype=torch.float64),  # infinite in float32
        torch.full((128, 32), torch.nan).to(torch.float8_e4m3fn),
    ],
    ids=['NaN', 'infinity', 'beyond float32', 'float8'],
)
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(CheckpointError, match=f'NaN or infinity in {KEY}'):
        to_backbone(official_state(random_model()) | {KEY: value}, 'x')


# --- what only some formats can have wrong --------------------------------------------------------


def find(state, ending):
    return next(key for key in state if key.endswith(ending))


def query_missing(state):
    key = find(state, '0.attention.self.query.weight')
    del state[key]
    return 'has .*0.attention.self.key.weight.*, but lacks .*0.attention.self.query.weight'


def query_cut(state):
    key = find(state, '0.attention.self.query.weight')
    state[key] = state[key][:4].clone()
    return r'query.weight, .*have different shapes: \(4, 8\), \(8, 8\), \(8, 8\)'


def bias_of_two_parts(state):
    key = find(state, '0.attn.qkv.bias')
    state[key] = state[key][:-1].clone()
    return r'qkv.bias has shape \(23,\), which has no 3 equal parts'


def flat_merging(state):
    key = find(state, '1.downsample.reduction.weight')
    state[key] = state[key].flatten()
    return r'1.downsample.reduction.weight has shape \(512,\), allowed: \(2C, 4C\)'


def table_of_zeros(state):
    key = find(state, 'relative_coords_table')
    state[key] = state[key] * 0
    return 'relative_coords_table holds no coordinates'


def both_names_of_the_network(state):
    for key in [key for key in state if 'cpb_mlp' in key]:
        state[key.replace('cpb_mlp', 'rpe_mlp')] = state[key].clone()
    return 'twice, once as layers.0.blocks.0.attn.rpe_mlp.0.weight'


@pytest.mark.parametrize(
    ('name', 'change'),
    [
        ('Hf', query_missing),
        ('HfModel', query_cut),
        ('Torchvision', bias_of_two_parts),
        ('Torchvision', table_of_zeros),
        ('Mmpretrain', flat_merging),
        ('Mmpretrain', table_of_zeros),
        ('Timm', both_names_of_the_network),
    ],
    ids=lambda value: getattr(value, '__name__', value),
)
def test_damage_peculiar_to_a_format_is_refused(name, change):
    state = state_of(load(name))
    message = change(state)
    with pytest.raises(CheckpointError, match=message):
        to_backbone(state, 'x')


# --- to another library ---------------------------------------------------------------------------


def test_parameters_without_a_place_are_refused():
    message = r'timm format has no place for norm0\.weight, .*: --drop norm0 norm1 norm2'
    with pytest.raises(CheckpointError, match=message):
        from_backbone(random_model().state_dict(), {}, FORMATS['timm'])
    with pytest.raises(CheckpointError, match=r'its classifier has only head\.weight.*--drop head'):
        from_backbone({}, {'head.weight': torch.ones(2, 2)}, FORMATS['timm'])


def test_official_buffers_equal_a_brute_force_definition():
    window, side = 4, 16
    pretrained = [(4, 4), (4, 4), (4, 4), (2, 2)]
    buffers = official_buffers((2, 1, 2, 2), pretrained, (window, window), (side, side))
    # Blocks that shift: odd ones of a stage whose map (16, 8, 4, 2) is larger than the window.
    assert {key for key in buffers if key.endswith('attn_mask')} == {'layers.0.blocks.1.attn_mask'}
    region = torch.zeros(side, side)
    slices = (slice(0, -4), slice(-4, -2), slice(-2, None))
    for i, rows in enumerate(slices):
        for j, columns in enumerate(slices):
            region[rows, columns] = 3 * i + j
    windows = region.view(side // 4, 4, side // 4, 4).transpose(1, 2).reshape(-1, 16)
    expected = (windows[:, None] != windows[:, :, None]) * -100.0
    assert torch.equal(buffers['layers.0.blocks.1.attn_mask'], expected)
    coords = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing='ij'), -1)
    offset = coords.view(16, 1, 2) - coords.view(1, 16, 2) + 3
    index = buffers['layers.1.blocks.0.attn.relative_position_index']
    assert torch.equal(index, offset[..., 0] * 7 + offset[..., 1])
    t = 8 * torch.arange(-3.0, 4) / 3
    t = t.sign() * torch.log2(1 + t.abs()) / 3
    table = buffers['layers.0.blocks.0.attn.relative_coords_table']
    expected = torch.stack(torch.meshgrid(t, t, indexing='ij'), -1)[None]
    torch.testing.assert_close(table, expected)
    # On the last map, of 2 x 2, the window has shrunk.
    assert buffers['layers.3.blocks.0.attn.relative_coords_table'].shape == (1, 3, 3, 2)


def test_buffers_of_windows_that_do_not_shrink():
    """torchvision's table keeps its size on a small map, in units of the pretrained window."""
    pretrained = [(4, 4), (4, 4), (4, 4), (2, 2)]
    buffers = official_buffers((1, 1, 1, 1), pretrained, (4, 4), (16, 16), shrinks_windows=False)
    theirs = export_buffers(buffers, FORMATS['torchvision'])
    table = theirs['features.7.0.attn.relative_coords_table']
    assert table.shape == (1, 7, 7, 2)
    torch.testing.assert_close(table.max(), torch.log2(torch.tensor(1.0 + 8 * 3)) / 3)
    assert theirs['features.7.0.attn.relative_position_index'].shape == (16 * 16,)
    assert not any(key.endswith('attn_mask') for key in theirs)


def test_maps_that_are_not_whole_windows_are_refused():
    with pytest.raises(CheckpointError, match=r'do not divide .* another window_size or img_size'):
        official_buffers((1, 1, 1, 1), [(4, 4)] * 4, (4, 4), (25, 25))
