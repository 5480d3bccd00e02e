"""Where the other implementations are wrong: ours equals the plain definition, theirs does not.

These are the sizes that test_features.py leaves out.
"""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.dense_reference import dense_forward

from .comparison import in_float64, largest_difference, measured
from .implementations import MODELS, NAMES, fill, need, noise
from .ours import ours_from, stages_of
from .recorded import ARCH

OFF_SIZE = dict(strict_img_size=False)
# Model, window, image it is built for, image, pretrained window, arguments.
CASES = {
    'torchvision_lets_padding_attend_on_maps_smaller_than_the_window': (
        ('Torchvision', 4, 64, 64, None, {})
    ),
    'torchvision_measures_offsets_in_units_of_the_current_window': (
        ('Torchvision', 8, 256, 256, 4, {})
    ),
    'timm_rolls_before_it_pads_off_its_sizes': ('Timm', 4, 128, 100, 4, OFF_SIZE),
    'transformers_lets_padding_attend_off_its_sizes': ('HfBackbone', 4, 128, 100, 4, {}),
    'transformers_keeps_the_windows_of_the_size_it_was_built_for': (
        ('HfBackbone', 8, 64, 256, 8, {})
    ),
    'mmpretrain_lets_padding_attend_off_its_sizes': ('Mmpretrain', 4, 128, 100, 4, {}),
}


@pytest.mark.parametrize('case', CASES)
def test_only_ours_equals_the_definition(tmp_path, case):
    name, window, built_for, size, pretrained, arguments = CASES[case]
    model = MODELS[NAMES.index(name)]
    need(model.module)
    theirs = fill(model.build(ARCH, window, built_for, pretrained, **arguments))
    pretrained_windows = [pretrained or window] * 4
    path = model.save(theirs, tmp_path)
    if pretrained and name == 'Torchvision':
        # Its tables are of the current window; without them the pretrained one can be given.
        state = {key: value for key, value in theirs.state_dict().items() if 'table' not in key}
        torch.save(state, path)
    ours = ours_from(path, ARCH, window, pretrained_window_sizes=pretrained_windows)
    x = noise((1, 3, size, size), seed=3).double()
    theirs, ours = in_float64(theirs), ours.double()
    with torch.inference_mode():
        outputs = stages_of(ours, x)[1]
        maps = [m.permute(0, 2, 3, 1) for m in model.stages(theirs, x)]
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
        [(w, w) for w in pretrained_windows],
    )
    error, their_error = (
        largest_difference(outputs, truth),
        largest_difference(theirs_normed, truth),
    )
    measured.append(f'{case}: off the definition by {their_error:.1e}, ours by {error:.1e}')
    assert error <= 1e-9
    assert their_error > 1e-3
