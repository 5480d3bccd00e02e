"""Files of the other implementations load and give their features, without them installed."""

import json

import pytest
import torch

from swinv2_backbone.checkpoints.formats import FORMATS
from swinv2_backbone.checkpoints.loading import open_checkpoint

from .implementations import CLASSES, MODELS, NAMES
from .ours import ours_from, stages_of
from .recorded import ARCH, DIGITS, WINDOW, image, load, record, sample, state_of

each_model = pytest.mark.parametrize(
    ('name', 'implementation'), list(zip(NAMES, MODELS, strict=True)), ids=NAMES
)
# Half of the last digit that is recorded, and what float64 itself rounds.
ROUNDING = 0.5 * 10**-DIGITS + 1e-9


def save(recorded, folder):
    """The recorded file, in its true container."""
    path = folder / recorded['file']
    state = state_of(recorded)
    if path.suffix == '.safetensors':
        pytest.importorskip('safetensors.torch').save_file(state, path)
    else:
        torch.save({'state_dict': state, 'meta': {}} if 'mmpretrain' in path.name else state, path)
    if recorded['config']:
        (folder / 'config.json').write_text(json.dumps(recorded['config']))
    return path


@each_model
def test_record_agrees_with_the_installed_library(tmp_path, name, implementation):
    recorded, live = load(name), record(implementation, tmp_path)
    assert live['shapes'] == recorded['shapes']
    assert_close(live['maps'], recorded['maps'], 2 * ROUNDING)  # both are rounded


@each_model
def test_loads_with_the_recorded_features(tmp_path, name, implementation):
    recorded = load(name)
    path = save(recorded, tmp_path)
    converted = open_checkpoint(str(path))
    assert converted.format == implementation.format
    classifier = any(shape == [CLASSES] for shape in recorded['shapes'].values())
    assert set(converted.head) == ({'head.weight', 'head.bias'} if classifier else set())
    has_windows = 'timm' not in implementation.format  # the file leads to the pretrained windows
    assert converted.pretrained_window_sizes == (
        dict.fromkeys(range(4), (WINDOW, WINDOW)) if has_windows else {}
    )
    model = ours_from(path, ARCH, WINDOW, pretrained_window_sizes='auto' if has_windows else WINDOW)
    with torch.inference_mode():
        maps = sample(stages_of(model.double(), image())[0])
    assert_close(maps, recorded['maps'], ROUNDING)


def assert_close(maps, recorded, tolerance):
    for got, wanted in zip(maps, recorded, strict=True):
        torch.testing.assert_close(
            torch.tensor(got, dtype=torch.float64),
            torch.tensor(wanted, dtype=torch.float64),
            rtol=0,
            atol=tolerance,
        )


@pytest.mark.parametrize('name', NAMES)
def test_names_and_values_survive_the_way_to_ours_and_back(name):
    """Through the key maps alone, bit for bit."""
    from swinv2_backbone.checkpoints import from_backbone, to_backbone

    state = state_of(load(name))
    converted = to_backbone(state, name)
    back = from_backbone(converted.state, converted.head, FORMATS[converted.format])
    assert set(back) == {key for key in state if 'relative_' not in key}
    for key, value in back.items():
        wanted = state[key]
        if key.endswith('attn.qkv.bias'):  # torchvision's bias of the keys, which it ignores
            wanted = wanted.clone()
            wanted[len(wanted) // 3 : 2 * len(wanted) // 3] = 0
        assert torch.equal(value, wanted), key
