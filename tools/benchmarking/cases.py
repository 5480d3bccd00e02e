"""What the benchmark measures: cases, and the names of what is timed. Shared with the workers."""

from dataclasses import dataclass

import torch

from tools.benchmarking.implementations import IMPLEMENTATIONS

MODES = ('infer', 'train')
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
ARCHITECTURES = {
    'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    # No released model: for trying the benchmark out in seconds.
    'mini': dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
}
# What each is called in tables, in the order of a round.
LABELS = {
    'ours': 'ours',
    'ours_reference': 'ours, reference attention',
    'ours_sequential': 'ours, windows_at_once',
    **{name: each.label or name for name, each in IMPLEMENTATIONS.items()},
    'gemm': 'GEMM limit',
}


@dataclass(frozen=True)
class Case:
    """One measurement: what each implementation does in a step.

    The mode is 'infer' (a forward) or 'train' (a forward and a backward). Height and width of the
    images are in pixels, the window's side is in tokens. A dtype other than 'fp32' is that of
    autocast; weights are float32 in any case.
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
        """Shapes ``(B, C, H, W)`` of the four feature maps, of strides 4 to 32."""
        return [
            (
                self.batch,
                embed_dims * 2**i,
                -(-self.height // (4 * 2**i)),
                -(-self.width // (4 * 2**i)),
            )
            for i in range(4)
        ]
