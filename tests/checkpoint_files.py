"""Checkpoint files in the true formats, made from random weights."""

import torch


def official_state(model, pretrained_window=8):
    """What microsoft/Swin-Transformer saves: a classifier, its geometry among the weights."""
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith(('norm0.', 'norm1.', 'norm2.')):
            continue
        state[key.replace('norm3.', 'norm.') if key.startswith('norm3.') else key] = value.clone()
    side, tokens = 2 * pretrained_window - 1, pretrained_window**2
    for i, stage in enumerate(model.layers):
        for j in range(len(stage.blocks)):
            name = f'layers.{i}.blocks.{j}'
            state[f'{name}.attn.relative_coords_table'] = torch.zeros(1, side, side, 2)
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
