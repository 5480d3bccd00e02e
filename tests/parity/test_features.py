"""Features, gradients and logits equal those of every other implementation."""

import pytest
import torch

from swinv2_backbone.arguments import ARCHITECTURES

from .ours import ours_from, stages_of
from .peers import NAMES, PEERS, fill, need

# window, picture, pretrained window
CASES = {'w8_256': (8, 256, None), 'w16_256': (16, 256, None), 'w16_512': (16, 512, None),
         'w8_to_w16_512': (16, 512, 8)}
WRONG = {
    ('Torchvision', 'w16_256'): 'torchvision pads the last 8 x 8 map to its window and lets the '
                                'pads attend',
    ('Torchvision', 'w8_to_w16_512'): 'torchvision measures offsets in units of the current window',
}


def last_map(peer, model, x):
    """What a peer's final norm makes of the last map, or None where it has none."""
    norm = peer.final_norm(model)
    return norm and norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('arch', ['tiny', 'base'])
@pytest.mark.parametrize('peer', PEERS, ids=NAMES)
def test_maps(tmp_path, peer, arch, case):
    need(peer.module)
    reason = WRONG.get((type(peer).__name__, case))
    if reason:
        pytest.skip(reason)
    window, size, pretrained = CASES[case]
    theirs = fill(peer.build(ARCHITECTURES[arch], window, size, pretrained))
    trained = [pretrained or min(window, size // (4 * 2**i)) for i in range(4)]
    ours = ours_from(peer.save(theirs, tmp_path), arch, window, pretrained_window_sizes=trained)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = list(peer.stages(theirs, x))
        got, outputs = stages_of(ours, x)
        wanted_last = last_map(peer, theirs, wanted[-1])
    if wanted_last is not None:
        got, wanted = [*got, outputs[-1]], [*wanted, wanted_last]
    difference = max((a - b).abs().max().item() for a, b in zip(got, wanted, strict=True))
    largest = max(b.abs().max().item() for b in wanted)
    print(f'\n{type(peer).__name__} {arch} {case}: largest value {largest:.1f}, '
          f'largest difference {difference:.1e}')
    assert difference <= 2e-5
