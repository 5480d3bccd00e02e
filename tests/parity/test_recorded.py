"""Files of the other libraries load, and give their features; without the libraries."""

import json

import pytest
import torch

from swinv2_backbone.checkpoints.formats import FORMATS
from swinv2_backbone.checkpoints.loading import open_checkpoint

from .implementations import CLASSES, IMPLEMENTATIONS, NAMES
from .ours import ours_from, stages_of
from .recorded import ARCH, WINDOW, image, load, record, sample, state_of


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


@pytest.mark.parametrize(
    ('name', 'implementation'), list(zip(NAMES, IMPLEMENTATIONS, strict=True)), ids=NAMES
)
def test_the_record_is_what_the_library_says_today(tmp_path, name, implementation):
    recorded, live = load(name), record(implementation, tmp_path)
    assert live['shapes'] == recorded['shapes']
    for ours, theirs in zip(recorded['maps'], live['maps'], strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ('name', 'implementation'), list(zip(NAMES, IMPLEMENTATIONS, strict=True)), ids=NAMES
)
def test_loads_and_gives_the_recorded_features(tmp_path, name, implementation):
    recorded = load(name)
    path = save(recorded, tmp_path)
    converted = open_checkpoint(str(path))
    assert converted.format == implementation.format
    classifier = any(shape == [CLASSES] for shape in recorded['shapes'].values())
    assert set(converted.head) == ({'head.weight', 'head.bias'} if classifier else set())
    tells = 'timm' not in implementation.format
    assert converted.pretrained_window_sizes == (dict.fromkeys(range(4), (WINDOW, WINDOW)) if tells else {})
    model = ours_from(path, ARCH, WINDOW, pretrained_window_sizes='auto' if tells else WINDOW)
    with torch.inference_mode():
        maps = sample(stages_of(model, image())[0])
    for ours, theirs in zip(maps, recorded['maps'], strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', NAMES)
def test_every_name_of_theirs_is_ours_and_back(name):
    """Through the maps alone, bit for bit: theirs -> ours -> theirs."""
    from swinv2_backbone.checkpoints import from_backbone, to_backbone

    state = state_of(load(name))
    converted = to_backbone(state, name)
    back = from_backbone(converted.state, converted.head, FORMATS[converted.format])
    geometry = {key for key in state if 'relative_' in key}
    assert set(back) == set(state) - geometry
    for key, value in back.items():
        wanted = state[key]
        if key.endswith('attn.qkv.bias'):  # torchvision's bias of the keys, which it ignores
            wanted = wanted.clone()
            wanted[len(wanted) // 3 : 2 * len(wanted) // 3] = 0
        assert torch.equal(value, wanted), key
