"""Images and a classifier whose answers are known."""

from types import SimpleNamespace

import pytest
import torch

from swinv2_backbone import SwinTransformerV2
from tests.helpers.classifier import save_classifier
from tests.helpers.models import SMALL_ARCH, randomize_parameters

COLORS = [
    (250, 20, 20),
    (20, 240, 30),
    (10, 30, 250),
    (240, 240, 20),
    (128, 128, 128),
    (20, 230, 230),
    (5, 5, 5),
    (250, 250, 250),
]


@pytest.fixture(scope='session')
def known(tmp_path_factory):
    """Eight images of one color each, and a classifier that recognizes them at any window.

    Its blocks add nothing (the weights of their norms are 0), so its feature of an image of one
    color is the same at any size; the head answers with the nearest of eight such features.

    Attributes:
        checkpoint: The classifier, whose file does not record its pretrained window size, 8.
        images: The folder of the images.
        labels: A file of their labels.
        wrong_labels: The same with two errors, of which one is not among the top five classes.
    """
    pytest.importorskip('PIL')
    from PIL import Image

    from tools.utils.images import to_tensor

    folder = tmp_path_factory.mktemp('known')
    torch.manual_seed(0)
    model = randomize_parameters(SwinTransformerV2(SMALL_ARCH)).eval()
    features = []
    with torch.no_grad():
        for stage in model.layers:
            for block in stage.blocks:
                for norm in (block.norm1, block.norm2):
                    norm.weight.zero_()
                    norm.bias.zero_()
        for index, color in enumerate(COLORS):
            image = Image.new('RGB', (90 + index, 70), color)
            (folder / 'images' / f'class{index % 3}').mkdir(parents=True, exist_ok=True)
            image.save(folder / 'images' / f'class{index % 3}' / f'{index}.png')
            resized = to_tensor(image.resize((64, 64)))[None]
            features.append(model(resized)[-1].mean((2, 3))[0])
    weight = torch.stack(features)
    save_classifier(folder / 'known.pth', model, weight, -weight.square().sum(1) / 2)
    lines = [f'class{index % 3}/{index}.png {index}' for index in range(8)]
    (folder / 'right.txt').write_text('\n'.join(lines) + '\n')
    order = torch.cdist(weight, weight).argsort(1)
    lines[2] = f'class2/2.png {order[2, 1]}'
    lines[5] = f'class2/5.png {order[5, 7]}'
    (folder / 'wrong.txt').write_text('\n'.join(lines))
    return SimpleNamespace(
        checkpoint=folder / 'known.pth',
        images=folder / 'images',
        labels=folder / 'right.txt',
        wrong_labels=folder / 'wrong.txt',
    )
