"""What the other implementations call their parameters, and what they compute, on a small model.

`make parity` holds the records in `recorded/` against the libraries; `make test`, which has none
of them, holds our loading against the records. `make parity-record` makes them anew.
"""

import json
from pathlib import Path

import pytest
import torch

from .implementations import IMPLEMENTATIONS, NAMES, fill, need, random_parameter

FOLDER = Path(__file__).parent / 'recorded'
ARCH = dict(embed_dims=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 4, 8))
WINDOW, SIZE = 4, 128
GEOMETRY = ('relative_coords_table', 'relative_position_index')


def image():
    return torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def sample(maps):
    """A few hundred numbers of each map."""
    return [[round(x, 6) for x in m[0, :, ::5, ::3].flatten()[::3].tolist()] for m in maps]


def build(implementation):
    need(implementation.module)
    return fill(implementation.build(ARCH, WINDOW, SIZE))


def record(implementation, folder):
    """Names, shapes and values of an implementation as it is installed; its file goes into a folder."""
    model = build(implementation)
    path = implementation.save(model, folder)
    with torch.inference_mode():
        maps = sample(implementation.stages(model, image()))
    config = folder / 'config.json'
    from safetensors.torch import load_file

    saved = load_file(path) if path.suffix == '.safetensors' else torch.load(path)
    return dict(
        shapes={key: list(value.shape) for key, value in saved.get('state_dict', saved).items()},
        file=path.name,
        maps=maps,
        config=json.loads(config.read_text()) if config.exists() else None,
    )


def load(name):
    return json.loads((FOLDER / f'{name}.json').read_text())


def state_of(recorded):
    """The state dict that was recorded: geometry computed here, the rest from the keys alone."""
    state = {}
    for key, shape in recorded['shapes'].items():
        if key.endswith('relative_coords_table'):
            t = 8 * torch.arange(1 - WINDOW, WINDOW) / (WINDOW - 1)
            table = torch.stack(torch.meshgrid(t, t, indexing='ij'), -1)[None]
            state[key] = table.sign() * torch.log2(1 + table.abs()) / 3
        elif key.endswith(GEOMETRY):
            state[key] = torch.zeros(shape).long()
        else:
            state[key] = random_parameter(key, tuple(shape))
    return state


def main():
    """Record the implementations that are installed."""
    import tempfile

    for name, implementation in zip(NAMES, IMPLEMENTATIONS, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            try:
                made = record(implementation, Path(folder))
            except pytest.skip.Exception:
                continue
        text = json.dumps(made).replace('], "', '],\n"')  # one key a line
        (FOLDER / f'{name}.json').write_text(text + '\n')
        print(f'recorded {name}: {len(made["shapes"])} tensors')


if __name__ == '__main__':
    main()
