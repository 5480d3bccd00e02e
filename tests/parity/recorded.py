"""What the other implementations call their parameters, and what they compute, on a small model.

`make parity` compares the records in `recorded/` with the libraries; `make test`, which has none
of them, compares what we load with the records. `make parity-record` writes them anew. Features
are computed in float64 and rounded to `DIGITS`, so a record is the same on every machine.
"""

import json
from pathlib import Path

import pytest
import torch

from .comparison import in_float64
from .implementations import MODELS, NAMES, fill, need, noise, random_parameter

FOLDER = Path(__file__).parent / 'recorded'
ARCH = dict(embed_dims=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 4, 8))
WINDOW, SIZE = 4, 128
DIGITS = 6


def image():
    return noise((1, 3, SIZE, SIZE), seed=2).double()


def sample(maps):
    """A few hundred numbers of each map."""
    return [m[0, :, ::5, ::3].flatten()[::3].tolist() for m in maps]


def record(implementation, folder):
    """Names, shapes and values of a model as its library is installed; its file is in `folder`."""
    need(implementation.module)
    model = fill(implementation.build(ARCH, WINDOW, SIZE))
    path = implementation.save(model, folder)
    with torch.inference_mode():
        maps = sample(implementation.stages(in_float64(model), image()))
    config = folder / 'config.json'
    from safetensors.torch import load_file

    saved = load_file(path) if path.suffix == '.safetensors' else torch.load(path)
    return dict(
        shapes={key: list(value.shape) for key, value in saved.get('state_dict', saved).items()},
        file=path.name,
        maps=[[round(x, DIGITS) for x in values] for values in maps],
        config=json.loads(config.read_text()) if config.exists() else None,
    )


def load(name):
    return json.loads((FOLDER / f'{name}.json').read_text())


def state_of(recorded):
    """The state dict that was recorded: tables computed here, the rest from the keys alone."""
    state = {}
    for key, shape in recorded['shapes'].items():
        if key.endswith('relative_coords_table'):
            t = 8 * torch.arange(1 - WINDOW, WINDOW) / (WINDOW - 1)
            table = torch.stack(torch.meshgrid(t, t, indexing='ij'), -1)[None]
            state[key] = table.sign() * torch.log2(1 + table.abs()) / 3
        elif key.endswith('relative_position_index'):
            state[key] = torch.zeros(shape).long()
        else:
            state[key] = random_parameter(key, tuple(shape))
    return state


def main():
    """Record the models of the implementations that are installed."""
    import tempfile

    for name, implementation in zip(NAMES, MODELS, strict=True):
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
