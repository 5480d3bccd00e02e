"""Broken checkpoints of every kind: the right error, naming file and cause, and nothing changed."""

import argparse
import json
import os
import pickle
import re

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.checkpoints.errors import CheckpointError
from tests.helpers.checkpoint_files import official_state, save_official
from tests.helpers.models import SMALL_ARCH, randomize_parameters
from tests.parity.implementations import NAMES
from tests.parity.recorded import ARCH, load, state_of

safetensors_torch = pytest.importorskip('safetensors.torch')


class RunsCode:
    """Unpickling it makes the folder that PICKLE_TRAP names."""

    def __reduce__(self):
        return os.mkdir, (os.environ['PICKLE_TRAP'],)


def check_refused(path, error, message, arch=ARCH, **init_cfg):
    """Loading raises the error, which names the file and the cause; the model stays as it was."""
    model = randomize_parameters(
        SwinTransformerV2(
            arch,
            window_size=4,
            pretrained_window_sizes=4,
            init_cfg=dict(type='Pretrained', checkpoint=str(path), **init_cfg),
        )
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=message) as caught:
        model.init_weights()
    assert type(caught.value) is error
    assert str(path) in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [stage.pretrained_window for stage in model.layers] == [(4, 4)] * 4


def save_state(name, state, folder, legacy=False):
    """A state dict in the container of its library, or in torch's of before 1.6."""
    path = folder / load(name)['file']
    if path.suffix == '.safetensors' and not legacy:
        safetensors_torch.save_file(state, path)
    else:
        torch.save({'state_dict': state}, path, _use_new_zipfile_serialization=not legacy)
    return path


# --- each format, cut short -----------------------------------------------------------------------


@pytest.mark.parametrize('part', [0.001, 0.4, 0.9, 0.9999])
@pytest.mark.parametrize('legacy', [False, True], ids=['today', 'legacy'])
@pytest.mark.parametrize('name', NAMES)
def test_truncated(tmp_path, name, legacy, part):
    path = save_state(name, state_of(load(name)), tmp_path, legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    check_refused(path, CheckpointError, 'damaged or cut short|refused by the safe loader')


# --- each format, with something wrong in it ------------------------------------------------------


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
    return f'does not know: {key.replace("weight", "wieght")}'


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
    twin = re.sub(r'\.0\.', '.00.', key, count=1)
    state[twin] = state[key].clone()
    return f'does not know: {twin}'


def beyond_float32(state):
    key = fc1(state)
    state[key] = state[key].to(torch.float64) * 1e200
    return f'NaN or infinity in {key}'


def transpose(state):
    key = fc1(state)
    state[key] = state[key].t().contiguous()
    return rf'shapes differ: {key} \(32, 128\) \(backbone: \(128, 32\)\)'


def integers(state):
    key = fc1(state)
    state[key] = state[key].long()
    return f'{key} is torch.int64, not floating point'


def complex_numbers(state):
    key = fc1(state)
    state[key] = torch.complex(state[key], state[key])
    return f'{key} is torch.complex64, not floating point'


def nan(state):
    key = fc1(state)
    state[key][3, 5] = torch.nan
    return f'NaN or infinity in {key}'


def infinity(state):
    key = find(state, 'logit_scale')
    state[key][0] = torch.inf
    return f'NaN or infinity in {key}'


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
    integers,
    complex_numbers,
    nan,
    infinity,
    beyond_float32,
    one_block_too_many,
    a_stage_is_missing,
]


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize('name', NAMES)
def test_wrong_inside(tmp_path, name, change):
    state = state_of(load(name))
    message = change(state)
    check_refused(save_state(name, state, tmp_path), CheckpointError, message)


# --- what only some formats can have wrong --------------------------------------------------------


def query_missing(state):
    key = find(state, '0.attention.self.query.weight')
    del state[key]
    return 'has .*0.attention.self.key.weight.*, but lacks .*0.attention.self.query.weight'


def query_transposed_and_cut(state):
    key = find(state, '0.attention.self.query.weight')
    state[key] = state[key][:4].clone()
    return r'query.weight, .*have different shapes: \(4, 8\), \(8, 8\), \(8, 8\)'


def bias_of_two_parts(state):
    key = find(state, '0.attn.qkv.bias')
    state[key] = state[key][:-1].clone()
    return r'qkv.bias has shape \(23,\), which has no 3 parts'


def flat_merging(state):
    key = find(state, '1.downsample.reduction.weight')
    state[key] = state[key].flatten()
    return r'1.downsample.reduction.weight has shape \(512,\), not \(2C, 4C\)'


def nonsense_table(state):
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
        ('HfModel', query_transposed_and_cut),
        ('Torchvision', bias_of_two_parts),
        ('Torchvision', nonsense_table),
        ('Mmpretrain', flat_merging),
        ('Mmpretrain', nonsense_table),
        ('Timm', both_names_of_the_network),
    ],
    ids=lambda value: getattr(value, '__name__', value),
)
def test_wrong_inside_one_format(tmp_path, name, change):
    state = state_of(load(name))
    message = change(state)
    check_refused(save_state(name, state, tmp_path), CheckpointError, message)


# --- files that are something else ----------------------------------------------------------------


def v1_state():
    """A Swin V1 classifier's names."""
    return {
        'patch_embed.proj.weight': torch.ones(8, 3, 4, 4),
        'layers.0.blocks.0.attn.relative_position_bias_table': torch.ones(169, 3),
        'layers.0.blocks.0.attn.qkv.weight': torch.ones(24, 8),
    }


def two_models():
    state = state_of(load('HfModel'))
    return {f'{who}.{key}': value for who in ('student', 'teacher') for key, value in state.items()}


def with_value(value):
    state = official_state(randomize_parameters(SwinTransformerV2(SMALL_ARCH)))
    state['layers.1.blocks.0.mlp.fc1.weight'] = value
    return state


def with_nothing():
    return {'cpb_mlp': torch.ones(2)}


def with_table(table):
    return with_value(torch.ones(128, 32)) | {'layers.0.blocks.0.attn.relative_coords_table': table}


FILES = {
    'an empty file': (b'', 'damaged or cut short'),
    'a text file': (b'404: not found\n', 'safe loader'),
    'an HTML page': (b'<!DOCTYPE html><html><body>Sign in</body></html>', 'safe loader'),
    'a git-lfs pointer': (
        b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n',
        'safe loader',
    ),
    'zeros': (bytes(5000), 'safe loader|damaged'),
    'a zip of something else': (b'PK\x03\x04' + bytes(300), 'damaged'),
    'JSON': (json.dumps({'state_dict': {}}).encode(), 'safe loader'),
    'a bare tensor': (torch.ones(3), 'holds a Tensor, not a dict'),
    'a list': ([1, 2], 'holds a list, not a dict'),
    'an empty dict': ({}, 'not a SwinV2 file: .* It has no keys'),
    'keys that are no names': ({'model': {1: torch.ones(2)}}, 'keys that are no names: 1'),
    'another network': ({'conv1.weight': torch.ones(2)}, 'not a SwinV2 file: .*conv1.weight'),
    'a Swin V1 file': (v1_state(), r'Swin Transformer V1 file \(relative_position_bias_table\)'),
    'two SwinV2 models': (two_models(), "several SwinV2 models; .*'student.', 'teacher.'"),
    'weights nested twice': (
        {'model_ema': v1_state(), 'weights': {'module': with_nothing()}},
        'not a SwinV2 file',
    ),
    'several sets of weights': (
        {'model_ema': with_value(torch.ones(128, 32)), 'weights': with_value(torch.ones(128, 32))},
        'several sets of weights: model_ema, weights; write the one',
    ),
    'arguments beside the weights': (
        {'state_dict': {}, 'args': argparse.Namespace(lr=1)},
        'it holds argparse.Namespace, which takes code to unpickle$',
    ),
    'float8': (
        with_value(torch.full((128, 32), torch.nan).to(torch.float8_e4m3fn)),
        'NaN or infinity in layers.1.blocks.0.mlp.fc1.weight',
    ),
    'a table without rows': (with_table(torch.zeros(1, 0, 15, 2)), 'coords_table is torch.float'),
    'a table of integers': (with_table(torch.ones(1, 15, 15, 2).long()), 'is torch.int64'),
    'a list for a tensor': (with_value([1.0]), 'fc1.weight is a list, not a tensor'),
    'a sparse tensor': (with_value(torch.ones(128, 32).to_sparse()), 'fc1.weight is a torch.spar'),
    'a meta tensor': (with_value(torch.ones(128, 32, device='meta')), 'fc1.weight is a meta'),
    'a quantized tensor': (
        with_value(torch.quantize_per_tensor(torch.ones(128, 32), 0.1, 0, torch.qint8)),
        'quantized',
    ),
}


@pytest.mark.parametrize(('content', 'message'), FILES.values(), ids=FILES)
def test_not_the_file_that_was_meant(tmp_path, content, message):
    path = tmp_path / 'file.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    check_refused(path, CheckpointError, message, arch=SMALL_ARCH)


def test_a_directory_and_a_missing_file(tmp_path):
    check_refused(tmp_path, FileNotFoundError, 'it is a directory')
    check_refused(tmp_path / 'absent.pth', FileNotFoundError, 'no such file')


@pytest.mark.parametrize(
    'wrap',
    [pickle.dumps, lambda obj: pickle.dumps({'model': obj}), lambda obj: pickle.dumps([obj], 0)],
    ids=['bare', 'in a dict', 'protocol 0'],
)
def test_a_pickle_that_runs_code(tmp_path, monkeypatch, wrap):
    monkeypatch.setenv('PICKLE_TRAP', str(tmp_path / 'code_has_run'))
    path = tmp_path / 'file.pth'
    path.write_bytes(wrap(RunsCode()))
    check_refused(path, CheckpointError, 'refused by the safe loader')
    torch.save({'state_dict': state_of(load('Timm')), 'meta': RunsCode()}, path)
    check_refused(path, CheckpointError, 'refused by the safe loader')
    # What a careless user may have set does not open the door.
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    check_refused(path, CheckpointError, 'refused by the safe loader')
    assert not (tmp_path / 'code_has_run').exists()


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'not safetensors at all',
        b'\xff' * 64,
        (2**40).to_bytes(8, 'little') + b'{}',
        (2).to_bytes(8, 'little') + b'{]',
    ],
    ids=['empty', 'text', 'huge header', 'header beyond the end', 'no JSON'],
)
def test_bad_safetensors(tmp_path, content):
    path = tmp_path / 'model.safetensors'
    path.write_bytes(content)
    check_refused(path, CheckpointError, 'damaged or cut short, or no safetensors')


@pytest.mark.parametrize('noted', ['[[8, 8]', '"8"', '[[0, 8]]', '[[8, 8], [8, 8, 8]]', '{}'])
def test_bad_safetensors_metadata(tmp_path, noted):
    path = tmp_path / 'model.safetensors'
    safetensors_torch.save_file(
        state_of(load('Timm')), path, metadata={'pretrained_window_sizes': noted}
    )
    check_refused(path, CheckpointError, 'its metadata has pretrained_window_sizes=')


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('{', 'cannot be read'),
        ('{"model_type": "swinv2", "window_size": "8"}', 'tells no windows'),
        ('{"model_type": "swinv2", "pretrained_window_sizes": [8]}', 'tells no windows'),
        ('{"model_type": "swinv2", "window_size": 0}', 'tells no windows'),
        ('{"model_type": "swinv2", "window_size": 8, "image_size": 8}', 'tells no windows'),
        ('{"model_type": "swinv2", "window_size": true}', 'tells no windows'),
        ('{"model_type": "swinv2", "pretrained_window_sizes": [-1, 8, 8, 8]}', 'tells no windows'),
        ('[' * 100000, 'cannot be read'),
        ('{"model_type": "swinv2", "hidden_act": "relu"}', "has hidden_act='relu'; the backbone "),
        ('{"model_type": "swinv2", "layer_norm_eps": 1e-3}', 'has layer_norm_eps=0.001; the'),
    ],
)
def test_bad_config_beside_it(tmp_path, config, message):
    path = save_state('HfModel', state_of(load('HfModel')), tmp_path)
    (tmp_path / 'config.json').write_text(config)
    check_refused(path, CheckpointError, f'config.json, which lies beside it, {message}')


def test_wrong_hash(tmp_path):
    path = save_official(
        randomize_parameters(SwinTransformerV2(SMALL_ARCH)), tmp_path / 'swinv2-0123456f.pth'
    )
    check_refused(
        path,
        CheckpointError,
        'its sha256 is [0-9a-f]{8}, but its name says 0123456f: it is damaged',
        arch=SMALL_ARCH,
    )
    path = save_official(
        randomize_parameters(SwinTransformerV2(SMALL_ARCH)), tmp_path / 'swinv2.pth'
    )
    check_refused(
        path,
        CheckpointError,
        "sha256='89abcdef89' was asked for",
        arch=SMALL_ARCH,
        sha256='89abcdef89',
    )


@pytest.mark.parametrize('setting', [dict(in_channels=1), dict(patch_size=2), dict(mlp_ratio=2)])
def test_another_setting_is_named(tmp_path, setting):
    torch.save(
        SwinTransformerV2(ARCH, pretrained_window_sizes=4, **setting).state_dict(),
        tmp_path / 'other.pth',
    )
    check_refused(
        tmp_path / 'other.pth',
        CheckpointError,
        f'shapes differ: .* The file was made with another {next(iter(setting))}',
    )


@pytest.mark.parametrize(
    ('file', 'backbone'), [('base', 'tiny'), ('tiny', 'small'), ('small', 'base')]
)
def test_another_architecture_is_named(tmp_path, file, backbone):
    torch.save(SwinTransformerV2(file).half().state_dict(), tmp_path / 'other.pth')
    check_refused(
        tmp_path / 'other.pth',
        CheckpointError,
        f"The file holds '{file}', the backbone is '{backbone}'",
        arch=backbone,
    )
