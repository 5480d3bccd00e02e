"""Checkpoint files in the true formats, made from random weights."""

import torch


def official_state(model, window=None):
    """What microsoft/Swin-Transformer saves: a classifier, its geometry among the weights.

    `window` is the one that it last ran with, if not the one its position bias was trained with.
    """
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith(('norm0.', 'norm1.', 'norm2.')):
            continue
        state[key.replace('norm3.', 'norm.') if key.startswith('norm3.') else key] = value.clone()
    for i, stage in enumerate(model.layers):
        height, width = window or stage.pretrained_window
        tokens = height * width
        # Written out: the tables are what tells the loader the window.
        axes = [
            8 * torch.arange(1 - w, w) / (p - 1)
            for w, p in zip((height, width), stage.pretrained_window, strict=True)
        ]
        table = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)
        table = table.sign() * torch.log2(1 + table.abs()) / 3
        for j in range(len(stage.blocks)):
            name = f'layers.{i}.blocks.{j}'
            state[f'{name}.attn.relative_coords_table'] = table[None]
            state[f'{name}.attn.relative_position_index'] = torch.zeros(tokens, tokens).long()
            if j % 2:
                state[f'{name}.attn_mask'] = torch.zeros(4, tokens, tokens)
    state['head.weight'] = torch.zeros(1000, model.num_features[-1])
    state['head.bias'] = torch.zeros(1000)
    return state


def save_official(model, path):
    """Write the official file of a model's weights and return its path as a string."""
    torch.save({'model': official_state(model)}, path)
    return str(path)
