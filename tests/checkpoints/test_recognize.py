"""Which state dict of a file is meant, and which format it is in."""

from collections import OrderedDict

import pytest
import torch

from swinv2_backbone.checkpoints.errors import CheckpointError
from swinv2_backbone.checkpoints.recognize import recognize, unwrap
from tests.parity.implementations import MODELS, NAMES
from tests.parity.recorded import load, state_of

WEIGHTS = {'layers.0.blocks.0.attn.cpb_mlp.0.weight': torch.ones(2)}
AVERAGED = {'layers.0.blocks.0.attn.cpb_mlp.0.weight': torch.zeros(2)}
V1 = {
    'patch_embed.proj.weight': torch.ones(8, 3, 4, 4),
    'layers.0.blocks.0.attn.relative_position_bias_table': torch.ones(169, 3),
    'layers.0.blocks.0.attn.qkv.weight': torch.ones(24, 8),
}


@pytest.mark.parametrize(
    'wrapper', ['model', 'state_dict', 'model_state_dict', 'model_ema', 'module', 'weights']
)
def test_weights_are_found_in_a_wrapper(wrapper):
    found = unwrap({wrapper: WEIGHTS, 'args': {'lr': 1}, 'epoch': 300})
    assert (dict(found.state), found.left_aside) == (WEIGHTS, [])


def test_bare_weights_are_found():
    assert dict(unwrap(WEIGHTS).state) == WEIGHTS


def test_averaged_weights_beside_the_weights_are_left_aside():
    """timm trains with both; its own loader takes state_dict by default."""
    found = unwrap({'state_dict': WEIGHTS, 'model': {'arch': 'a name'}, 'state_dict_ema': AVERAGED})
    assert (dict(found.state), found.left_aside) == (WEIGHTS, ['state_dict_ema'])


def test_marks_of_torchs_wrappers_are_removed():
    mark = '_checkpoint_wrapped_module._fsdp_wrapped_module'
    state = OrderedDict(
        (f'module._orig_mod.{key.replace("attn", f"{mark}.attn")}', value)
        for key, value in WEIGHTS.items()
    )
    state._metadata = {'module._orig_mod': {'pretrained_window_sizes': [[8, 8]] * 4}}
    found = unwrap({'state_dict': state})
    assert list(found.state) == [f'module.{key}' for key in WEIGHTS]
    assert found.metadata == {'module': {'pretrained_window_sizes': [[8, 8]] * 4}}


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'model': {1: torch.ones(2)}}, 'keys that are not strings: 1'),
        (
            {'model_ema': WEIGHTS, 'weights': AVERAGED},
            'several sets of weights: model_ema, weights; write the one',
        ),
        (
            WEIGHTS | {f'_orig_mod.{key}': value for key, value in WEIGHTS.items()},
            'keys that differ only by the mark of a wrapper of torch',
        ),
    ],
)
def test_ambiguous_files_are_refused(content, message):
    with pytest.raises(CheckpointError, match=message):
        unwrap(content)


@pytest.mark.parametrize('prefix', ['', 'student.'])
@pytest.mark.parametrize(
    ('name', 'implementation'), list(zip(NAMES, MODELS, strict=True)), ids=NAMES
)
def test_the_format_and_the_prefix_of_every_library_are_recognized(name, implementation, prefix):
    state = {prefix + key: value for key, value in state_of(load(name)).items()}
    fmt, found = recognize(state)
    assert fmt.name == implementation.format
    assert found in (prefix, prefix + fmt.prefix)


@pytest.mark.parametrize(
    ('state', 'message'),
    [
        ({}, 'not a SwinV2 file: .* It has no keys'),
        ({'conv1.weight': torch.ones(2)}, r'not a SwinV2 file: .*conv1\.weight'),
        ({'module': {'cpb_mlp': torch.ones(2)}}, 'not a SwinV2 file'),
        (V1, r'Swin Transformer V1 file \(relative_position_bias_table\)'),
        (
            {
                f'{who}.{key}': value
                for who in ('student', 'teacher')
                for key, value in WEIGHTS.items()
            },
            "several SwinV2 models; .*'student.', 'teacher.'",
        ),
    ],
    ids=['empty', 'another network', 'nested twice', 'V1', 'two models'],
)
def test_other_files_are_refused_with_the_likely_cause(state, message):
    with pytest.raises(CheckpointError, match=message):
        recognize(state)
