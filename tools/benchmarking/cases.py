"""What the benchmark measures: cases, and the names of what is timed. Shared with the workers."""

from dataclasses import dataclass

import torch

from tools.benchmarking.implementations import IMPLEMENTATIONS

MODES = ('infer', 'train')
DTYPES = {
    'fp32': torch.float32,
    'bf16': torch.bfloat16,
    'bf16_weights': torch.bfloat16,
    'fp16': torch.float16,
    'int8': torch.float32,
}
ARCHITECTURES = {
    'tiny': dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    # No released model: for trying the benchmark out in seconds.
    'mini': dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
}
# How a step is executed: the end of an implementation's name, as in 'timm+compile', and its label.
EXECUTIONS = {
    '': '',
    '+graph': ', CUDA graph',
    '+compile': ', compiled',
    '+compile+graph': ', compiled, CUDA graph',
}
_NETWORKS = {
    'ours': 'ours',
    'ours_sdpa': 'ours, SDPA',
    'ours_reference': 'ours, reference attention',
    'ours_sequential': 'ours, windows_at_once',
    'ours_half_backward': 'ours, backward by half-precision products',
    'ours_without_onednn': "ours, torch's own linear layers",
    **{name: each.label or name for name, each in IMPLEMENTATIONS.items()},
}
# What each is called in tables, in the order of a round.
LABELS = {
    **{n + e: label + text for n, label in _NETWORKS.items() for e, text in EXECUTIONS.items()},
    'gemm': 'GEMM limit',
}


def network_of(name: str) -> str:
    """The name without its execution: 'timm+compile' to 'timm'."""
    return name.partition('+')[0]


def is_another_v2(name: str) -> bool:
    """Whether it is another implementation of the same network, SwinV2."""
    found = IMPLEMENTATIONS.get(network_of(name))
    return found is not None and found.is_v2


@dataclass(frozen=True)
class Case:
    """One measurement: what each implementation does in a step.

    The mode is 'infer' (a forward) or 'train' (a forward and a backward). Height and width of the
    images are in pixels, the window's side is in tokens. A dtype other than 'fp32' is that of
    autocast; weights are float32, but those of linear layers if it is 'bf16_weights'. In 'int8'
    linear layers multiply int8 (torchao, dynamic), and all else is float32.
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
