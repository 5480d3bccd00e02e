"""The published SwinV2 checkpoints; ``python -m swinv2_backbone`` prints this table.

``swinv2://NAME`` loads one of them. Accuracies are the publisher's own (ImageNet-1K, per cent);
``-`` where the publisher states none. SimMIM's self-supervised files are missing because the links
that Microsoft published no longer work.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from urllib.parse import urlparse

SCHEME = 'swinv2://'
HUB_SCHEME = 'hf://'
_SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')

# Pretrained window sizes in tokens (square), one per stage. The last map of a 256 px image is 8 x 8
# and that of a 192 px image 6 x 6; the window of the last stage shrank to it.
PRETRAINED_WINDOW_SIZES = {'w8': (8, 8, 8, 8), 'w16': (16, 16, 16, 8), 'w12': (12, 12, 12, 6)}


@dataclass(frozen=True)
class Release:
    """A published checkpoint.

    Attributes:
        name: The NAME of ``swinv2://NAME``: the file's stem, or owner/name on the hub.
        format: Name of its format.
        image_size: Side in pixels of the images that it was last trained on.
        pretrained_window_sizes: (height, width) in tokens, one per stage.
        top1: ImageNet-1K top-1 accuracy in per cent; top5 likewise.
        url: http(s) or hf:// address.
        source: Where size and accuracy are published.
    """

    name: str
    format: str
    arch: str
    image_size: int
    pretrained_window_sizes: tuple[tuple[int, int], ...]
    megabytes: int | None
    top1: float | None
    top5: float | None
    url: str
    source: str

    @property
    def window_size(self) -> int:
        """Window it was last trained with: 12 at 192 px became 16 at 256 px and 24 at 384 px."""
        first, last = self.pretrained_window_sizes[0][0], self.pretrained_window_sizes[-1][0]
        return first * self.image_size // (32 * last)


# Per publisher: format, address of a name, where the numbers are published, and one release per
# line: name, arch, image size, key of PRETRAINED_WINDOW_SIZES, megabytes, top-1, top-5.
_PUBLISHERS = (
    (
        'official',
        'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/{}.pth',
        'microsoft/Swin-Transformer, MODELHUB.md',
        """
        swinv2_tiny_patch4_window8_256                         tiny  256 w8  - 81.8 95.9
        swinv2_small_patch4_window8_256                        small 256 w8  - 83.7 96.6
        swinv2_base_patch4_window8_256                         base  256 w8  - 84.2 96.9
        swinv2_tiny_patch4_window16_256                        tiny  256 w16 - 82.8 96.2
        swinv2_small_patch4_window16_256                       small 256 w16 - 84.1 96.8
        swinv2_base_patch4_window16_256                        base  256 w16 - 84.6 97.0
        swinv2_base_patch4_window12_192_22k                    base  192 w12 - -    -
        swinv2_large_patch4_window12_192_22k                   large 192 w12 - -    -
        swinv2_base_patch4_window12to16_192to256_22kto1k_ft    base  256 w12 - 86.2 97.9
        swinv2_base_patch4_window12to24_192to384_22kto1k_ft    base  384 w12 - 87.1 98.2
        swinv2_large_patch4_window12to16_192to256_22kto1k_ft   large 256 w12 - 86.9 98.0
        swinv2_large_patch4_window12to24_192to384_22kto1k_ft   large 384 w12 - 87.6 98.3
        """,
    ),
    (
        'mmpretrain',
        'https://download.openmmlab.com/mmclassification/v0/swin-v2/{}.pth',
        'open-mmlab/mmpretrain, configs/swin_transformer_v2/README.md',
        """
        swinv2-tiny-w8_3rdparty_in1k-256px_20220803-e318968f             tiny  256 w8  - 81.76 95.87
        swinv2-tiny-w16_3rdparty_in1k-256px_20220803-9651cdd7            tiny  256 w16 - 82.81 96.23
        swinv2-small-w8_3rdparty_in1k-256px_20220803-b01a4332            small 256 w8  - 83.74 96.6
        swinv2-small-w16_3rdparty_in1k-256px_20220803-b707d206           small 256 w16 - 84.13 96.83
        swinv2-base-w8_3rdparty_in1k-256px_20220803-8ff28f2b             base  256 w8  - 84.2  96.86
        swinv2-base-w16_3rdparty_in1k-256px_20220803-5a1886b7            base  256 w16 - 84.6  97.05
        swinv2-base-w16_in21k-pre_3rdparty_in1k-256px_20220803-8d7aa8ad  base  256 w12 - 86.17 97.88
        swinv2-base-w24_in21k-pre_3rdparty_in1k-384px_20220803-44eb70f8  base  384 w12 - 87.14 98.23
        swinv2-large-w16_in21k-pre_3rdparty_in1k-256px_20220803-c40cbed7 large 256 w12 - 86.93 98.06
        swinv2-large-w24_in21k-pre_3rdparty_in1k-384px_20220803-3b36c165 large 384 w12 - 87.59 98.27
        pretrain/swinv2-base-w12_3rdparty_in21k-192px_20220803-f7dc9763  base  192 w12 - -     -
        pretrain/swinv2-large-w12_3rdparty_in21k-192px_20220803-d9073fee large 192 w12 - -     -
        """,
    ),
    (
        'hf',
        'hf://microsoft/{}',
        'huggingface.co/microsoft',
        """
        swinv2-tiny-patch4-window8-256                         tiny  256 w8  113 - -
        swinv2-tiny-patch4-window16-256                        tiny  256 w16 113 - -
        swinv2-small-patch4-window8-256                        small 256 w8  199 - -
        swinv2-small-patch4-window16-256                       small 256 w16 199 - -
        swinv2-base-patch4-window8-256                         base  256 w8  352 - -
        swinv2-base-patch4-window16-256                        base  256 w16 352 - -
        swinv2-base-patch4-window12-192-22k                    base  192 w12 437 - -
        swinv2-base-patch4-window12to16-192to256-22kto1k-ft    base  256 w12 352 - -
        swinv2-base-patch4-window12to24-192to384-22kto1k-ft    base  384 w12 -   - -
        swinv2-large-patch4-window12-192-22k                   large 192 w12 915 - -
        swinv2-large-patch4-window12to16-192to256-22kto1k-ft   large 256 w12 787 - -
        swinv2-large-patch4-window12to24-192to384-22kto1k-ft   large 384 w12 787 - -
        """,
    ),
    (
        'timm',
        'hf://timm/{}',
        'huggingface/pytorch-image-models, results/results-imagenet.csv',
        """
        swinv2_tiny_window8_256.ms_in1k                        tiny  256 w8  115 81.82  95.994
        swinv2_tiny_window16_256.ms_in1k                       tiny  256 w16 119 82.804 96.236
        swinv2_small_window8_256.ms_in1k                       small 256 w8  -   83.854 96.644
        swinv2_small_window16_256.ms_in1k                      small 256 w16 -   84.224 96.868
        swinv2_base_window8_256.ms_in1k                        base  256 w8  -   84.25  96.924
        swinv2_base_window16_256.ms_in1k                       base  256 w16 357 84.6   97.09
        swinv2_base_window12_192.ms_in22k                      base  192 w12 -   -      -
        swinv2_base_window12to16_192to256.ms_in22k_ft_in1k     base  256 w12 357 86.268 97.882
        swinv2_base_window12to24_192to384.ms_in22k_ft_in1k     base  384 w12 -   87.096 98.234
        swinv2_large_window12_192.ms_in22k                     large 192 w12 -   -      -
        swinv2_large_window12to16_192to256.ms_in22k_ft_in1k    large 256 w12 792 86.952 98.106
        swinv2_large_window12to24_192to384.ms_in22k_ft_in1k    large 384 w12 814 87.464 98.25
        """,
    ),
    (
        'torchvision',
        'https://download.pytorch.org/models/{}.pth',
        'torchvision 0.28.0, models/swin_transformer.py',
        """
        swin_v2_t-b137f0e2                                     tiny  256 w8  109 82.072 96.132
        swin_v2_s-637d8ceb                                     small 256 w8  191 83.712 96.816
        swin_v2_b-781e5279                                     base  256 w8  336 84.112 96.864
        """,
    ),
)


def _all_releases() -> Iterator[Release]:
    for fmt, address, source, table in _PUBLISHERS:
        for line in table.strip().splitlines():
            name, arch, image_size, windows, megabytes, top1, top5 = line.split()
            url = address.format(name)
            # mmpretrain and the hub put a folder in front of some names; the hub's is kept.
            in_hub = url.startswith(HUB_SCHEME)
            yield Release(
                url.removeprefix(HUB_SCHEME) if in_hub else name.rpartition('/')[2],
                fmt,
                arch,
                int(image_size),
                tuple((side, side) for side in PRETRAINED_WINDOW_SIZES[windows]),
                None if megabytes == '-' else int(megabytes),
                None if top1 == '-' else float(top1),
                None if top5 == '-' else float(top5),
                url,
                source,
            )


RELEASES = {release.name: release for release in _all_releases()}


def find_release(source: str) -> Release | None:
    """The release that a path, URL or hub address names, or None.

    Paths and URLs are compared by the file's name, hub addresses by owner and name.
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
    """The address of ``swinv2://NAME``; any other address unchanged.

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
            'names that `python -m swinv2_backbone` prints, such as ' + ', '.join(nearest)
        )
    return release.url
