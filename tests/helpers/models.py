"""Small models with random weights that make every part matter."""

import math

import pytest
import torch

# Older ones cannot trace the model: their dynamo has no dataclasses as keys of a dict.
needs_compile = pytest.mark.skipif(
    torch.__version__ < (2, 11), reason='torch.compile traces the model from torch 2.11 on'
)
TINY = dict(arch='tiny', drop_path_rate=0.0)
# Four stages, a shifted block in each, and quick.
SMALL_ARCH = dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))


def randomize_parameters(model, seed=0, above_clamp=False):
    """Random weights that make every part matter.

    Post-norms away from 0 and 1, logit scales away from ln 10, a position bias that varies by
    several units, biases that are not zero. `above_clamp` puts the first head's scale above
    ln 100; a softmax that sharp multiplies float32's rounding, so compare in float64 then.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(p, mean, std):
        p.copy_(mean + std * torch.randn(p.shape, generator=generator))

    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith('logit_scale'):
                normal(p, math.log(10), 0.4)
                p[0] += 2.5 * above_clamp
            elif 'cpb_mlp' in name:
                normal(p, 0, 1.0 if '.0.' in name else 0.1)
            elif 'norm' in name:
                normal(p, 1.0 if name.endswith('weight') else 0.0, 0.2)
            elif name.endswith('bias'):
                normal(p, 0, 0.2)
            else:
                normal(p, 0, p[0].numel() ** -0.5)
    return model
