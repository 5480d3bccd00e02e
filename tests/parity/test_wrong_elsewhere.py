"""Where the other implementations are wrong: ours equals the plain definition, theirs does not.

These are the sizes that test_features.py leaves out.
"""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.dense_reference import dense_forward

from .implementations import IMPLEMENTATIONS, NAMES, fill, need
from .ours import measured, ours_from, stages_of
from .recorded import ARCH

# Implementation, window, built for, run at, pretrained window, arguments; and what is wrong there.
CASES = {
    'torchvision_lets_pads_attend_on_maps_smaller_than_the_window': (
        'Torchvision',
        4,
        64,
        64,
        None,
        {},
    ),
    'torchvision_measures_offsets_in_units_of_the_current_window': (
        'Torchvision',
        8,
        256,
        256,
        4,
        {},
    ),
    'timm_rolls_before_it_pads_off_its_sizes': (
        'Timm',
        4,
        128,
        100,
        4,
        dict(strict_img_size=False),
    ),
    'transformers_lets_pads_attend_off_its_sizes': ('HfBackbone', 4, 128, 100, 4, {}),
    'transformers_keeps_the_windows_of_the_size_it_was_built_for': (
        'HfBackbone',
        8,
        64,
        256,
        8,
        {},
    ),
    'mmpretrain_lets_pads_attend_off_its_sizes': ('Mmpretrain', 4, 128, 100, 4, {}),
}


@pytest.mark.parametrize('case', CASES)
def test(tmp_path, case):
    name, window, built, size, pretrained, arguments = CASES[case]
    implementation = IMPLEMENTATIONS[NAMES.index(name)]
    need(implementation.module)
    theirs = fill(implementation.build(ARCH, window, built, pretrained, **arguments))
    trained = [pretrained or window] * 4
    path = implementation.save(theirs, tmp_path)
    if pretrained and name == 'Torchvision':
        # It cannot say that it was trained with another window; the weights alone are compared.
        state = {key: value for key, value in theirs.state_dict().items() if 'table' not in key}
        torch.save(state, path)
    ours = ours_from(path, ARCH, window, pretrained_window_sizes=trained)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(3)).double()
    theirs, ours = theirs.double(), ours.double()
    with torch.no_grad():
        outputs = stages_of(ours, x)[1]
        maps = [m.permute(0, 2, 3, 1) for m in implementation.stages(theirs, x)]
        theirs_normed = [
            F.layer_norm(
                m, m.shape[-1:], getattr(ours, f'norm{i}').weight, getattr(ours, f'norm{i}').bias
            ).permute(0, 3, 1, 2)
            for i, m in enumerate(maps)
        ]
    truth = dense_forward(
        ours.state_dict(),
        x,
        ARCH['depths'],
        ARCH['num_heads'],
        [(window, window)] * 4,
        [(w, w) for w in trained],
    )
    off = [
        max((a - b).abs().max().item() for a, b in zip(these, truth, strict=True))
        for these in (outputs, theirs_normed)
    ]
    measured.append(f'{case}: off the definition by {off[1]:.1e}, ours by {off[0]:.1e}')
    assert off[0] <= 1e-9
    assert off[1] > 1e-3
