"""The published SwinV2 checkpoints, in one place; ``python -m swinv2_backbone`` shows them.

Loading takes the address of one, ``swinv2://NAME``, and its name tells which windows the position
bias was trained with. Numbers are the publisher's own (ImageNet-1K, per cent); None where the
source states none. SimMIM's self-supervised files are not here: the links that Microsoft published
no longer work.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from urllib.parse import urlparse

SCHEME = 'swinv2://'
HUB_SCHEME = 'hf://'
_SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')

# Windows of the four stages. The last map of a 256 px image is 8 x 8, of a 192 px one 6 x 6.
_W8, _W16, _W12 = ((w, w, w, last) for w, last in ((8, 8), (16, 8), (12, 6)))


@dataclass(frozen=True)
class Release:
    """A published checkpoint.

    Attributes:
        name: What it is called, for ``swinv2://NAME``: the file's stem, or owner/name on the hub.
        format: The format that it is in.
        url: http(s) or hf address.
        arch: Architecture.
        image_size: Side in pixels of the images that it was (last) trained on.
        windows: (height, width) in tokens that the position bias of each stage was trained with.
        megabytes: Size of the file.
        top1: ImageNet-1K accuracy in per cent.
        top5: The same for the first five.
        source: Where size and accuracy stand.
    """

    name: str
    format: str
    url: str
    arch: str
    image_size: int
    windows: tuple[tuple[int, int], ...]
    megabytes: int | None
    top1: float | None
    top5: float | None
    source: str

    @property
    def running_window(self) -> int:
        """The window that it was last trained with: from 12 at 192 px it went to 16 at 256."""
        trained, last = self.windows[0][0], self.windows[-1][0]
        return trained * self.image_size // (32 * last)


# Each row: name, arch, image size, windows, megabytes, top-1, top-5.
_OFFICIAL = (
    ('swinv2_tiny_patch4_window8_256', 'tiny', 256, _W8, None, 81.8, 95.9),
    ('swinv2_small_patch4_window8_256', 'small', 256, _W8, None, 83.7, 96.6),
    ('swinv2_base_patch4_window8_256', 'base', 256, _W8, None, 84.2, 96.9),
    ('swinv2_tiny_patch4_window16_256', 'tiny', 256, _W16, None, 82.8, 96.2),
    ('swinv2_small_patch4_window16_256', 'small', 256, _W16, None, 84.1, 96.8),
    ('swinv2_base_patch4_window16_256', 'base', 256, _W16, None, 84.6, 97.0),
    ('swinv2_base_patch4_window12_192_22k', 'base', 192, _W12, None, None, None),
    ('swinv2_large_patch4_window12_192_22k', 'large', 192, _W12, None, None, None),
    ('swinv2_base_patch4_window12to16_192to256_22kto1k_ft', 'base', 256, _W12, None, 86.2, 97.9),
    ('swinv2_base_patch4_window12to24_192to384_22kto1k_ft', 'base', 384, _W12, None, 87.1, 98.2),
    ('swinv2_large_patch4_window12to16_192to256_22kto1k_ft', 'large', 256, _W12, None, 86.9, 98.0),
    ('swinv2_large_patch4_window12to24_192to384_22kto1k_ft', 'large', 384, _W12, None, 87.6, 98.3),
)
_MMPRETRAIN = (
    ('swinv2-tiny-w8_3rdparty_in1k-256px_20220803-e318968f', 'tiny', 256, _W8, None, 81.76, 95.87),
    (
        'swinv2-tiny-w16_3rdparty_in1k-256px_20220803-9651cdd7',
        'tiny',
        256,
        _W16,
        None,
        82.81,
        96.23,
    ),
    ('swinv2-small-w8_3rdparty_in1k-256px_20220803-b01a4332', 'small', 256, _W8, None, 83.74, 96.6),
    (
        'swinv2-small-w16_3rdparty_in1k-256px_20220803-b707d206',
        'small',
        256,
        _W16,
        None,
        84.13,
        96.83,
    ),
    ('swinv2-base-w8_3rdparty_in1k-256px_20220803-8ff28f2b', 'base', 256, _W8, None, 84.2, 96.86),
    ('swinv2-base-w16_3rdparty_in1k-256px_20220803-5a1886b7', 'base', 256, _W16, None, 84.6, 97.05),
    (
        'swinv2-base-w16_in21k-pre_3rdparty_in1k-256px_20220803-8d7aa8ad',
        'base',
        256,
        _W12,
        None,
        86.17,
        97.88,
    ),
    (
        'swinv2-base-w24_in21k-pre_3rdparty_in1k-384px_20220803-44eb70f8',
        'base',
        384,
        _W12,
        None,
        87.14,
        98.23,
    ),
    (
        'swinv2-large-w16_in21k-pre_3rdparty_in1k-256px_20220803-c40cbed7',
        'large',
        256,
        _W12,
        None,
        86.93,
        98.06,
    ),
    (
        'swinv2-large-w24_in21k-pre_3rdparty_in1k-384px_20220803-3b36c165',
        'large',
        384,
        _W12,
        None,
        87.59,
        98.27,
    ),
    (
        'pretrain/swinv2-base-w12_3rdparty_in21k-192px_20220803-f7dc9763',
        'base',
        192,
        _W12,
        None,
        None,
        None,
    ),
    (
        'pretrain/swinv2-large-w12_3rdparty_in21k-192px_20220803-d9073fee',
        'large',
        192,
        _W12,
        None,
        None,
        None,
    ),
)
_HF = (
    ('swinv2-tiny-patch4-window8-256', 'tiny', 256, _W8, 113, None, None),
    ('swinv2-tiny-patch4-window16-256', 'tiny', 256, _W16, 113, None, None),
    ('swinv2-small-patch4-window8-256', 'small', 256, _W8, 199, None, None),
    ('swinv2-small-patch4-window16-256', 'small', 256, _W16, 199, None, None),
    ('swinv2-base-patch4-window8-256', 'base', 256, _W8, 352, None, None),
    ('swinv2-base-patch4-window16-256', 'base', 256, _W16, 352, None, None),
    ('swinv2-base-patch4-window12-192-22k', 'base', 192, _W12, 437, None, None),
    ('swinv2-base-patch4-window12to16-192to256-22kto1k-ft', 'base', 256, _W12, 352, None, None),
    ('swinv2-base-patch4-window12to24-192to384-22kto1k-ft', 'base', 384, _W12, None, None, None),
    ('swinv2-large-patch4-window12-192-22k', 'large', 192, _W12, 915, None, None),
    ('swinv2-large-patch4-window12to16-192to256-22kto1k-ft', 'large', 256, _W12, 787, None, None),
    ('swinv2-large-patch4-window12to24-192to384-22kto1k-ft', 'large', 384, _W12, 787, None, None),
)
_TIMM = (
    ('swinv2_tiny_window8_256.ms_in1k', 'tiny', 256, _W8, 115, 81.82, 95.994),
    ('swinv2_tiny_window16_256.ms_in1k', 'tiny', 256, _W16, 119, 82.804, 96.236),
    ('swinv2_small_window8_256.ms_in1k', 'small', 256, _W8, None, 83.854, 96.644),
    ('swinv2_small_window16_256.ms_in1k', 'small', 256, _W16, None, 84.224, 96.868),
    ('swinv2_base_window8_256.ms_in1k', 'base', 256, _W8, None, 84.25, 96.924),
    ('swinv2_base_window16_256.ms_in1k', 'base', 256, _W16, 357, 84.6, 97.09),
    ('swinv2_base_window12_192.ms_in22k', 'base', 192, _W12, None, None, None),
    ('swinv2_base_window12to16_192to256.ms_in22k_ft_in1k', 'base', 256, _W12, 357, 86.268, 97.882),
    ('swinv2_base_window12to24_192to384.ms_in22k_ft_in1k', 'base', 384, _W12, None, 87.096, 98.234),
    ('swinv2_large_window12_192.ms_in22k', 'large', 192, _W12, None, None, None),
    (
        'swinv2_large_window12to16_192to256.ms_in22k_ft_in1k',
        'large',
        256,
        _W12,
        792,
        86.952,
        98.106,
    ),
    ('swinv2_large_window12to24_192to384.ms_in22k_ft_in1k', 'large', 384, _W12, 814, 87.464, 98.25),
)
_TORCHVISION = (
    ('swin_v2_t-b137f0e2', 'tiny', 256, _W8, 109, 82.072, 96.132),
    ('swin_v2_s-637d8ceb', 'small', 256, _W8, 191, 83.712, 96.816),
    ('swin_v2_b-781e5279', 'base', 256, _W8, 336, 84.112, 96.864),
)

# Format, rows, address of a name, where the numbers stand.
_PUBLISHERS = (
    (
        'official',
        _OFFICIAL,
        'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/{}.pth',
        'microsoft/Swin-Transformer, MODELHUB.md',
    ),
    (
        'mmpretrain',
        _MMPRETRAIN,
        'https://download.openmmlab.com/mmclassification/v0/swin-v2/{}.pth',
        'open-mmlab/mmpretrain, configs/swin_transformer_v2/README.md',
    ),
    ('hf', _HF, 'hf://microsoft/{}', 'huggingface.co/microsoft'),
    (
        'timm',
        _TIMM,
        'hf://timm/{}',
        'huggingface/pytorch-image-models, results/results-imagenet.csv',
    ),
    (
        'torchvision',
        _TORCHVISION,
        'https://download.pytorch.org/models/{}.pth',
        'torchvision 0.28.0, models/swin_transformer.py',
    ),
)


def _all_releases() -> Iterator[Release]:
    for fmt, rows, address, source in _PUBLISHERS:
        for name, arch, image_size, windows, *numbers in rows:
            url = address.format(name)
            # mmpretrain and the hub put a folder in front of some names.
            name = name.rpartition('/')[2]
            name = url.removeprefix(HUB_SCHEME) if url.startswith(HUB_SCHEME) else name
            yield Release(
                name, fmt, url, arch, image_size, tuple((w, w) for w in windows), *numbers, source
            )


RELEASES = {release.name: release for release in _all_releases()}


def find_release(source: str) -> Release | None:
    """The release that a path, URL or hub address names, or None.

    Paths and URLs are known by the file's name, addresses of a hub by owner and name.
    """
    if source.startswith(SCHEME):
        return RELEASES.get(source.removeprefix(SCHEME))
    if source.startswith(HUB_SCHEME):
        owner, _, rest = source.removeprefix(HUB_SCHEME).partition('/')
        return RELEASES.get(f'{owner}/{rest.split("/")[0].split("@")[0]}')
    name = urlparse(source).path.rpartition('/')[2]
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return RELEASES.get(name) or RELEASES.get(f'timm/{name}')


def resolve(checkpoint: str) -> str:
    """The address of ``swinv2://NAME``; any other, as it is.

    Raises:
        ValueError: If no release has that name.
    """
    if not checkpoint.startswith(SCHEME):
        return checkpoint
    release = find_release(checkpoint)
    if release is None:
        nearest = get_close_matches(checkpoint.removeprefix(SCHEME), RELEASES, cutoff=0)
        raise ValueError(
            f"init_cfg: checkpoint: got '{checkpoint}', allowed after {SCHEME}: the "
            'names that `python -m swinv2_backbone` shows, such as ' + ', '.join(nearest)
        )
    return release.url
