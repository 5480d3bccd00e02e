"""Features, gradients and logits equal those of every other implementation."""

import pytest
import torch
from torch import nn

from swinv2_backbone.arguments import ARCHITECTURES
from swinv2_backbone.checkpoints.formats import FORMATS
from swinv2_backbone.checkpoints.key_rules import translate

from .comparison import assert_equal_in_float64, assert_rounds_no_worse, in_float64, measured
from .implementations import CLASSES, MODELS, NAMES, fill, need, noise
from .ours import ours_from, stages_of

# window, image, pretrained window
CASES = {
    'w8_256': (8, 256, None),
    'w16_256': (16, 256, None),
    'w16_512': (16, 512, None),
    'w8_to_w16_512': (16, 512, 8),
}
# Where torchvision is wrong: see test_wrong_elsewhere.py. Off their sizes, all of the others are.
WRONG = {('Torchvision', 'w16_256'), ('Torchvision', 'w8_to_w16_512')}
# The same network under other names: compared in the first case alone.
SAME_NETWORK = ('TimmFeatures', 'Hf', 'HfModel')


def name_of(value):
    """A readable id of a parameter of a test."""
    return value if isinstance(value, str) else type(value).__name__


COMPARED = [
    (model, case)
    for case in CASES
    for model in MODELS
    if (name_of(model), case) not in WRONG
    and (case == 'w8_256' or name_of(model) not in SAME_NETWORK)
]


def pair(model, folder, arch='tiny', case='w8_256', sharp=False):
    """Theirs with random parameters, ours loaded from its file, and an image; in float32."""
    need(model.module)
    window, size, pretrained = CASES[case]
    arch = ARCHITECTURES[arch]
    theirs = fill(model.build(arch, window, size, pretrained), sharp)
    pretrained_windows = [pretrained or min(window, size // (4 * 2**i)) for i in range(4)]
    ours = ours_from(
        model.save(theirs, folder), arch, window, pretrained_window_sizes=pretrained_windows
    )
    return theirs, ours, noise((1, 3, size, size), seed=1)


def maps_of_both(model, ours, theirs, x):
    """The four maps before any norm, and the last one after the final norm, of ours and theirs."""
    their_maps = list(model.stages(theirs, x))
    maps, outputs = stages_of(ours, x)
    if model.final_norm(theirs) is None:
        return maps, their_maps
    last = model.final_norm(theirs)(their_maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return [*maps, outputs[-1]], [*their_maps, last]


@pytest.mark.parametrize(
    ('model', 'case', 'arch'),
    [(*both, 'tiny') for both in COMPARED]
    + [(model, 'w8_256', 'base') for model in MODELS if name_of(model) not in SAME_NETWORK],
    ids=name_of,
)
def test_maps(tmp_path, model, case, arch):
    theirs, ours, x = pair(model, tmp_path, arch, case)
    what = f'{name_of(model)} {arch} {case}'
    with torch.inference_mode():
        exact = maps_of_both(model, ours.double(), in_float64(theirs), x.double())
        assert_equal_in_float64(*exact, what)
        if arch == 'tiny':
            assert_rounds_no_worse(*maps_of_both(model, ours.float(), theirs, x), exact[1], what)


@pytest.mark.parametrize('model', MODELS, ids=NAMES)
def test_maps_with_sharp_heads_in_all_stages(tmp_path, model):
    theirs, ours, x = pair(model, tmp_path, sharp=True)
    with torch.inference_mode():
        maps = maps_of_both(model, ours.double(), in_float64(theirs), x.double())
    assert_equal_in_float64(*maps, f'{name_of(model)} sharp')


@pytest.mark.parametrize(
    ('model', 'case'), [both for both in COMPARED if both[1].endswith('256')], ids=name_of
)
def test_gradients_of_all_parameters(tmp_path, model, case):
    theirs, ours, x = pair(model, tmp_path, case=case)
    theirs, ours = in_float64(theirs), ours.double()
    for maps in maps_of_both(model, ours, theirs, x.double()):
        weights = [noise(m.shape, seed) for seed, m in enumerate(maps)]
        sum((m * w).mean() for m, w in zip(maps, weights, strict=True)).backward()
    prefix = FORMATS[model.format].prefix
    gradients = {
        key.removeprefix(prefix): p.grad
        for key, p in theirs.named_parameters()
        if p.grad is not None
    }
    # A gradient is laid out as its parameter is.
    wanted, unknown = translate(gradients, FORMATS[model.format], to_ours=True)
    assert unknown == []
    got = {key: p.grad for key, p in ours.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys()
    worst = {
        key: ((got[key] - g).norm() / g.norm().clamp(min=1e-30)).item() for key, g in wanted.items()
    }
    name = max(worst, key=worst.get)
    measured.append(
        f'{name_of(model)} {case}: gradients of {len(worst)} parameters, largest relative '
        f'difference in float64 {worst[name]:.1e} ({name})'
    )
    assert worst[name] <= 1e-9


class DropFirstKeepSecond(nn.Module):
    """What drop path does to a batch of two: the first is dropped, the second kept and scaled."""

    keep = 0.7

    def forward(self, x, draws=None):
        return x * x.new_tensor([0.0, 1 / self.keep]).view(2, *[1] * (x.ndim - 1))


# What each calls its drop path; mmpretrain is left out: it drops before the norm.
DROP_PATHS = {
    'Timm': ('drop_path1', 'drop_path2'),
    'HfBackbone': ('drop_path',),
    'Torchvision': ('stochastic_depth',),
}


@pytest.mark.parametrize('model', [m for m in MODELS if name_of(m) in DROP_PATHS], ids=name_of)
def test_drop_path_scales_after_the_norm(tmp_path, model):
    theirs, ours, x = pair(model, tmp_path)
    theirs, ours, x = in_float64(theirs), ours.double(), x.double()
    replaced = 0
    for module in theirs.modules():
        for name in DROP_PATHS[name_of(model)]:
            if hasattr(module, name):
                setattr(module, name, DropFirstKeepSecond())
                replaced += 1
    assert replaced >= 12
    for stage in ours.layers:
        for block in stage.blocks:
            block.drop_path = DropFirstKeepSecond()
    with torch.inference_mode():
        maps = maps_of_both(model, ours.train(), theirs.train(), torch.cat([x, x]))
    assert (maps[0][0][0] - maps[0][0][1]).abs().max() > 1
    assert_equal_in_float64(*maps, f'{name_of(model)} drop path')


@pytest.mark.parametrize('scope', ['whole', 'backbone alone'])
def test_logits_in_mmpretrains_classifier(tmp_path, monkeypatch, scope):
    """Theirs, and ours in the same classifier: the whole one converted, or the backbone loaded."""
    need('mmpretrain')
    import sys

    from mmpretrain.models import ImageClassifier

    from tools.model_converters import convert_checkpoint

    model = MODELS[NAMES.index('Mmpretrain')]
    theirs = fill(model.build(ARCHITECTURES['tiny'], 8, 256))
    path = str(model.save(theirs, tmp_path))
    ours = ImageClassifier(
        backbone=dict(
            type='swinv2_backbone.SwinTransformerV2',
            arch='tiny',
            out_indices=(3,),
            drop_path_rate=0.0,
            init_cfg=dict(type='Pretrained', checkpoint=path),
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=768),
    )
    if scope == 'whole':
        arguments = ['', path, str(tmp_path / 'ours.pth'), '--to', 'swinv2_backbone']
        monkeypatch.setattr(sys, 'argv', arguments)
        convert_checkpoint.main()
        state = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
        ours.load_state_dict(state, strict=True)
    else:
        ours.backbone.init_weights()
        ours.head.load_state_dict(theirs.head.state_dict())
    x = noise((2, 3, 256, 256), seed=1).double()
    with torch.inference_mode():
        logits = [logits_of(m.eval(), x) for m in (ours.double(), in_float64(theirs))]
    assert logits[0].shape == (2, CLASSES)
    assert_equal_in_float64(*([each] for each in logits), f'logits, {scope}')


def logits_of(classifier, x):
    return classifier.head(classifier.extract_feat(x))
