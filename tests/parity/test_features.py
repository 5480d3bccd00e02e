"""Features, gradients and logits equal those of every other implementation."""

import pytest
import torch
from torch import nn

from swinv2_backbone.arguments import ARCHITECTURES
from swinv2_backbone.checkpoints.formats import FORMATS
from swinv2_backbone.checkpoints.key_rules import translate

from .implementations import CLASSES, IMPLEMENTATIONS, NAMES, fill, need
from .ours import measured, ours_from, stages_of

# window, image, pretrained window
CASES = {
    'w8_256': (8, 256, None),
    'w16_256': (16, 256, None),
    'w16_512': (16, 512, None),
    'w8_to_w16_512': (16, 512, 8),
}
# Where torchvision is wrong: see test_wrong_elsewhere.py. Off their sizes, all of the others are.
WRONG = {('Torchvision', 'w16_256'), ('Torchvision', 'w8_to_w16_512')}
COMPARED = [
    (implementation, case)
    for case in CASES
    for implementation in IMPLEMENTATIONS
    if (type(implementation).__name__, case) not in WRONG
]
each_peer = pytest.mark.parametrize('implementation', IMPLEMENTATIONS, ids=NAMES)


def name_of(value):
    """A readable id of a parameter of a test."""
    return value if isinstance(value, str) else type(value).__name__


def pair(implementation, folder, arch='tiny', case='w8_256', sharp=False):
    """Theirs with random_parameter weights, ours loaded from its file, and an image."""
    need(implementation.module)
    window, size, pretrained = CASES[case]
    arch = ARCHITECTURES[arch]
    theirs = fill(implementation.build(arch, window, size, pretrained), sharp)
    trained = [pretrained or min(window, size // (4 * 2**i)) for i in range(4)]
    ours = ours_from(
        implementation.save(theirs, folder), arch, window, pretrained_window_sizes=trained
    )
    return theirs, ours, torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def last_map(implementation, model, x):
    """What an implementation's final norm makes of the last map, or None where it has none."""
    norm = implementation.final_norm(model)
    return norm and norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def maps_of_both(implementation, theirs, ours, x):
    """The four maps before any norm, and the last one after the final norm, of ours and theirs."""
    wanted = list(implementation.stages(theirs, x))
    got, outputs = stages_of(ours, x)
    last = last_map(implementation, theirs, wanted[-1])
    return ([*got, outputs[-1]], [*wanted, last]) if last is not None else (got, wanted)


def largest_difference(got, wanted, what):
    difference = max((a - b).abs().max().item() for a, b in zip(got, wanted, strict=True))
    measured.append(
        f'{what}: largest value {max(b.abs().max() for b in wanted):.1f}, '
        f'largest difference {difference:.1e}'
    )
    return difference


@pytest.mark.parametrize('arch', ['tiny', 'base'])
@pytest.mark.parametrize(('implementation', 'case'), COMPARED, ids=name_of)
def test_maps(tmp_path, implementation, arch, case):
    theirs, ours, x = pair(implementation, tmp_path, arch, case)
    with torch.inference_mode():
        got, wanted = maps_of_both(implementation, theirs, ours, x)
    assert largest_difference(got, wanted, f'{type(implementation).__name__} {arch} {case}') <= 2e-5


@each_peer
def test_maps_with_sharp_heads_in_all_stages(tmp_path, implementation):
    """In float64, so that it is the definition that is compared, not the rounding.

    What is left is the rounding of their tables of coordinates, which are float32.
    """
    theirs, ours, x = pair(implementation, tmp_path, sharp=True)
    with torch.inference_mode():
        got, wanted = maps_of_both(implementation, theirs.double(), ours.double(), x.double())
    assert (
        largest_difference(got, wanted, f'{type(implementation).__name__} sharp, float64') <= 2e-5
    )


@pytest.mark.parametrize(
    ('implementation', 'case'), [both for both in COMPARED if both[1].endswith('256')], ids=name_of
)
def test_gradients_of_all_parameters(tmp_path, implementation, case):
    theirs, ours, x = pair(implementation, tmp_path, case=case)
    got, wanted = maps_of_both(implementation, theirs, ours, x)
    weights = [
        torch.randn(m.shape, generator=torch.Generator().manual_seed(i))
        for i, m in enumerate(wanted)
    ]
    for maps in (got, wanted):
        sum((m * w).mean() for m, w in zip(maps, weights, strict=True)).backward()
    prefix = FORMATS[implementation.format].prefix
    gradients = {
        key.removeprefix(prefix): p.grad
        for key, p in theirs.named_parameters()
        if p.grad is not None
    }
    # A gradient is re-laid as its parameter is.
    wanted, unknown = translate(gradients, FORMATS[implementation.format], to_ours=True)
    assert unknown == []
    got = {key: p.grad for key, p in ours.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys()
    worst = {
        key: ((got[key] - g).norm() / g.norm().clamp(min=1e-30)).item() for key, g in wanted.items()
    }
    name = max(worst, key=worst.get)
    measured.append(
        f'{type(implementation).__name__} {case}: gradients of {len(worst)} parameters, largest '
        f'relative difference {worst[name]:.1e} ({name})'
    )
    assert worst[name] <= 1e-4


class Scale(nn.Module):
    """What drop path does to a batch of two: the first is dropped, the second kept and scaled."""

    keep = 0.7

    def forward(self, x):
        return x * torch.tensor([0.0, 1 / self.keep]).view(2, *[1] * (x.ndim - 1))


# What each calls its drop path; mmpretrain is left out: it drops before the norm.
DROP_PATHS = {
    'Timm': ('drop_path1', 'drop_path2'),
    'HfBackbone': ('drop_path',),
    'Torchvision': ('stochastic_depth',),
}


@pytest.mark.parametrize(
    'implementation', [p for p in IMPLEMENTATIONS if type(p).__name__ in DROP_PATHS], ids=name_of
)
def test_drop_path_in_training(tmp_path, implementation):
    """Kept branches scale by 1 / keep after the norm, dropped ones leave nothing."""
    theirs, ours, x = pair(implementation, tmp_path)
    replaced = 0
    for module in theirs.modules():
        for name in DROP_PATHS[type(implementation).__name__]:
            if hasattr(module, name):
                setattr(module, name, Scale())
                replaced += 1
    assert replaced >= 12
    for stage in ours.layers:
        for block in stage.blocks:
            block.drop_path = Scale()
    with torch.inference_mode():
        got, wanted = maps_of_both(implementation, theirs.train(), ours.train(), torch.cat([x, x]))
    assert (got[0][0] - got[0][1]).abs().max() > 1
    assert largest_difference(got, wanted, f'{type(implementation).__name__} drop path') <= 2e-5


@pytest.mark.parametrize('scope', ['whole', 'backbone alone'])
def test_logits_in_mmpretrains_classifier(tmp_path, scope):
    """Theirs, and ours in the same classifier: the whole one converted, or the backbone loaded."""
    need('mmpretrain')
    import sys

    from mmpretrain.models import ImageClassifier

    from tools.model_converters import convert_checkpoint

    implementation = next(p for p in IMPLEMENTATIONS if type(p).__name__ == 'Mmpretrain')
    theirs = fill(implementation.build(ARCHITECTURES['tiny'], 8, 256))
    path = str(implementation.save(theirs, tmp_path))
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
        sys.argv = ['', path, str(tmp_path / 'ours.pth'), '--to', 'swinv2_backbone']
        convert_checkpoint.main()
        state = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
        ours.load_state_dict(state, strict=True)
    else:
        ours.backbone.init_weights()
        ours.head.load_state_dict(theirs.head.state_dict())
    x = torch.randn(2, 3, 256, 256)
    with torch.inference_mode():
        got, wanted = (model.eval()(x, mode='tensor') for model in (ours, theirs))
        got, wanted = (
            head.head((features[-1],)) if features[-1].ndim == 2 else features
            for head, features in ((ours, got), (theirs, wanted))
        )
    assert got.shape == (2, CLASSES)
    assert largest_difference([got], [wanted], 'logits') <= 2e-5
