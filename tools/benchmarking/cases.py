"""What the benchmark measures: cases and implementations. Shared by the parent and its workers."""

from dataclasses import dataclass

MODES = ('infer', 'train')
DTYPES = ('fp32', 'bf16', 'fp16')
ARCHITECTURES = {
    'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    # No released model: for trying the benchmark out in seconds.
    'mini': dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
}
# What each implementation is called in tables. Order is the order of a round.
LABELS = {
    'ours': 'ours',
    'ours_plain': 'ours, plain attention',
    'ours_sequential': 'ours, windows_at_once',
    'timm': 'timm',
    'transformers': 'transformers',
    'torchvision': 'torchvision',
    'mmpretrain': 'mmpretrain',
    'swin_v1': 'V1 Swin-T (timm)',
    'gemm': 'GEMM limit',
}
# Other implementations of the same network, among which the fastest is looked for.
V2_IMPLEMENTATIONS = ('timm', 'transformers', 'torchvision', 'mmpretrain')
IMPLEMENTATIONS = (*V2_IMPLEMENTATIONS, 'swin_v1')
# The folder of tools/misc/bootstrap.py in which an implementation finds its library; none for ours.
FOLDERS = {**dict.fromkeys(IMPLEMENTATIONS, 'hf'), 'mmpretrain': 'mmpretrain'}


@dataclass(frozen=True)
class Case:
    """One measurement: what each implementation is to do in a step.

    Attributes:
        mode: 'infer' (a forward) or 'train' (a forward and a backward).
        height: Of the images, in pixels; width likewise.
        width: See height.
        window: Side of an attention window in tokens.
        batch: Images a step.
        dtype: 'fp32', or the half precision of autocast; weights are float32 in any case.
    """

    mode: str
    height: int
    width: int
    window: int
    batch: int
    dtype: str

    def __str__(self) -> str:
        return (
            f'{self.mode} {self.height}x{self.width}, window {self.window}, '
            f'batch {self.batch}, {self.dtype}'
        )

    def map_shapes(self, embed_dims: int) -> list[tuple[int, int, int, int]]:
        """Shapes ``(B, C, H, W)`` of the four maps, of strides 4 to 32."""
        sides = []
        height, width = -(-self.height // 4), -(-self.width // 4)
        for stage in range(4):
            sides.append((self.batch, embed_dims * 2**stage, height, width))
            height, width = -(-height // 2), -(-width // 2)
        return sides
