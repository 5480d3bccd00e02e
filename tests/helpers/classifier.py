"""A checkpoint of an image classifier."""

from pathlib import Path

import torch

from swinv2_backbone import SwinTransformerV2


def save_classifier(
    path: Path, model: SwinTransformerV2, weight: torch.Tensor, bias: torch.Tensor
) -> None:
    """Write a file as mmpretrain writes it for an ImageClassifier with this linear head."""
    state = {
        f'backbone.{key}': value
        for key, value in model.state_dict().items()
        if not key.startswith(('norm0', 'norm1', 'norm2'))
    }
    state |= {'head.fc.weight': weight, 'head.fc.bias': bias}
    torch.save({'state_dict': state}, path)
