"""Architectures from shapes, and shapes from architectures."""

import pytest

from swinv2_backbone import SwinTransformerV2
from swinv2_backbone.arguments import ARCHITECTURES
from swinv2_backbone.checkpoints.architecture import (
    arch_of,
    describe_arch,
    expected_parameters,
    explain_mismatch,
    mlp_ratio_of,
    settings_of,
)
from swinv2_backbone.checkpoints.errors import CheckpointError
from tests.helpers.models import SMALL_ARCH


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize(
    'settings',
    [
        dict(arch=SMALL_ARCH),
        dict(arch=SMALL_ARCH, in_channels=1, patch_size=2, mlp_ratio=2.7),
        dict(arch=dict(embed_dims=8, depths=(2, 1, 3, 1), num_heads=(1, 2, 4, 8)), mlp_ratio=0.9),
        dict(arch=ARCHITECTURES['tiny']),
    ],
    ids=['small', 'other settings', 'uneven', 'tiny'],
)
def test_expected_parameters_are_the_models(settings):
    model = SwinTransformerV2(**settings)
    assert shapes(expected_parameters(**settings)) == shapes(model.state_dict())


@pytest.mark.parametrize('ratio', [2.7, 0.9, 4.0, 3.3333])
def test_settings_are_found_again(ratio):
    state = expected_parameters(SMALL_ARCH, in_channels=5, patch_size=8, mlp_ratio=ratio)
    found = settings_of(state)
    assert (found['arch'], found['in_channels'], found['patch_size']) == (SMALL_ARCH, 5, 8)
    assert found['mlp_ratio'] == mlp_ratio_of(state)
    assert shapes(expected_parameters(**found)) == shapes(state)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_architectures_are_named(name):
    state = expected_parameters(ARCHITECTURES[name])
    assert arch_of(state) == ARCHITECTURES[name]
    assert describe_arch(state) == f"'{name}'"


def test_unnamed_and_partial_architectures_are_described_by_their_numbers():
    assert describe_arch(expected_parameters(SMALL_ARCH)) == f'a model of {SMALL_ARCH}'
    state = expected_parameters(SMALL_ARCH)
    part = {key: value for key, value in state.items() if key.startswith('layers.1')}
    assert arch_of(part) == dict(depths=(0, 2, 0, 0), num_heads=(0, 2, 0, 0))


@pytest.mark.parametrize(
    ('removed', 'message'),
    [
        ('patch_embed.proj', 'patch embed is missing or incomplete'),
        ('patch_embed.norm', 'patch embed is missing or incomplete'),
        ('layers.3.', r'not all four stages are there \(blocks: \(2, 2, 2, 0\)\)'),
    ],
)
def test_parts_of_a_model_have_no_settings(removed, message):
    state = expected_parameters(SMALL_ARCH)
    with pytest.raises(CheckpointError, match=message):
        settings_of({key: value for key, value in state.items() if not key.startswith(removed)})


def test_heads_that_do_not_divide_the_channels_are_refused():
    state = expected_parameters({**SMALL_ARCH, 'num_heads': (1, 2, 4, 7)})
    with pytest.raises(CheckpointError, match=r'fit no backbone .*got 7 heads at stage 3'):
        settings_of(state)


@pytest.mark.parametrize(
    ('theirs', 'message'),
    [
        (dict(arch=SMALL_ARCH, in_channels=1), 'The file was made with another in_channels.'),
        (dict(arch=SMALL_ARCH, patch_size=2), 'The file was made with another patch_size.'),
        (dict(arch=SMALL_ARCH, mlp_ratio=2.0), 'The file was made with another mlp_ratio.'),
        (dict(arch=SMALL_ARCH), f'Both are a model of {SMALL_ARCH}: the file is damaged'),
        (
            dict(arch=ARCHITECTURES['base']),
            f"The file holds 'base', the backbone is a model of {SMALL_ARCH}",
        ),
    ],
)
def test_a_mismatch_is_explained(theirs, message):
    explained = explain_mismatch(expected_parameters(**theirs), expected_parameters(SMALL_ARCH))
    assert explained.startswith(message)
