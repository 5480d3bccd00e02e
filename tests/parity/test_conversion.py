"""What convert_checkpoint.py writes loads in the other library, strictly, and computes the same."""

import json
import sys

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from tests.helpers.models import SMALL_ARCH
from tools.model_converters import convert_checkpoint

from .comparison import assert_equal_in_float64, in_float64
from .implementations import CLASSES, MODELS, NAMES, fill, need, noise
from .ours import stages_of

load_file = pytest.importorskip('safetensors.torch').load_file

WINDOW = 4
# Pretrained window sizes of a model for images of this size: at 64 px the last map is 2 x 2.
PRETRAINED = {128: [4, 4, 4, 4], 64: [4, 4, 4, 2]}


@pytest.fixture
def convert(tmp_path, monkeypatch):
    """Write a model of ours with random weights in a format; returns it and the path."""
    torch.manual_seed(0)

    def write(name, head, safetensors, size):
        model = fill(
            SwinTransformerV2(
                SMALL_ARCH,
                window_size=WINDOW,
                drop_path_rate=0.0,
                pretrained_window_sizes=PRETRAINED[size],
            )
        )
        kept = 'norm3' if name != 'timm_features' else 'none'
        state = {
            key: value
            for key, value in model.state_dict().items()
            if not key.startswith('norm') or key.startswith(kept)
        }
        if head:
            state = {f'backbone.{key}': value for key, value in state.items()}
            state |= {'head.fc.weight': torch.randn(CLASSES, 128), 'head.fc.bias': torch.randn(10)}
        torch.save(state, tmp_path / 'ours.pth')
        there = tmp_path / ('there' if name == 'hf' else 'there.bin')
        monkeypatch.setattr(
            sys,
            'argv',
            [
                '',
                str(tmp_path / 'ours.pth'),
                str(there),
                '--to',
                name,
                '--pretrained-window-sizes',
                *map(str, PRETRAINED[size]),
                *['--safetensors'] * safetensors,
            ],
        )
        convert_checkpoint.main()
        return model, there

    return write


@pytest.mark.parametrize('safetensors', [False, True], ids=['torch', 'safetensors'])
@pytest.mark.parametrize('size', PRETRAINED)
@pytest.mark.parametrize('implementation', MODELS, ids=NAMES)
def test_loads_strictly_and_computes_the_same(convert, implementation, size, safetensors):
    need(implementation.module)
    name = type(implementation).__name__
    head = name not in ('TimmFeatures', 'HfModel', 'HfBackbone')
    ours, there = convert(implementation.format, head, safetensors, size)
    if implementation.module == 'transformers':
        import transformers

        theirs, info = getattr(transformers, implementation.class_name).from_pretrained(
            there, output_loading_info=True, local_files_only=True
        )
        # A backbone has no final norm; every other key is taken and none is missing.
        spare = {'layernorm.weight', 'layernorm.bias'} if name == 'HfBackbone' else set()
        assert set(info['unexpected_keys']) == spare
        assert not info['missing_keys']
        assert not info['mismatched_keys']
        config = json.loads((there / 'config.json').read_text())
        assert config['pretrained_window_sizes'] == PRETRAINED[size]
        assert config['image_size'] == size
    else:
        theirs = implementation.build(SMALL_ARCH, WINDOW, size)
        state = load_file(there) if safetensors else torch.load(there, weights_only=True)
        state = state.get('state_dict', state)
        shapes = {key: value.shape for key, value in theirs.state_dict().items()}
        assert {key: value.shape for key, value in state.items()} == shapes
        if name == 'Mmpretrain':
            load_into_mmpretrain(theirs, state)
        else:
            theirs.load_state_dict(state, strict=True)
    x = noise((1, 3, size, size), seed=0).double()
    with torch.inference_mode():
        got = stages_of(ours.double(), x)[0]
        wanted = implementation.stages(in_float64(theirs.eval()), x)
    # torchvision lets padding attend on a map smaller than its window: the last is left out.
    stages = 3 if name == 'Torchvision' and size == 64 else 4
    assert_equal_in_float64(got[:stages], wanted[:stages], f'{name} converted, {size} px')


def load_into_mmpretrain(theirs, state):
    """Load a state dict into mmpretrain's model; only its tables may be missing.

    Its own hook deletes them before it loads, so strict=True fails on any file, even on the
    model's own state dict.
    """
    with pytest.raises(RuntimeError, match='Missing key'):
        theirs.load_state_dict(theirs.state_dict(), strict=True)
    result = theirs.load_state_dict(state, strict=False)
    assert result.unexpected_keys == []
    assert all(
        key.endswith(('relative_coords_table', 'relative_position_index'))
        for key in result.missing_keys
    )


def test_timm_upload_is_read(tmp_path):
    """timm's own upload format: safetensors with a config.json."""
    timm = need('timm')
    from timm.models.hub import save_for_hf

    from swinv2_backbone.checkpoints.loading import open_checkpoint

    model = timm.create_model('swinv2_tiny_window16_256.ms_in1k', num_classes=CLASSES)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    converted = open_checkpoint(str(tmp_path / 'model.safetensors'))
    assert converted.format == 'timm'
    assert converted.window_source == 'config.json'
    assert converted.pretrained_window_sizes == {i: (w, w) for i, w in enumerate((16, 16, 16, 8))}
