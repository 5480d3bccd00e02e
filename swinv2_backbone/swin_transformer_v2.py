"""SwinTransformerV2, the multi-scale backbone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.utils.dl_utils import is_norm
from torch import Tensor, nn

from . import arguments
from .checkpoints.loading import with_checkpoints_last
from .checkpoints.pretrained_windows import (
    parse_pretrained_windows,
    reconcile_metadata,
    write_metadata,
)
from .layer_depth import layer_depth
from .layers.drop_path import draw_paths, drop_path_rates
from .layers.fused_norm import norm_map
from .layers.initialization import has_values, init_from_scratch, reset_from_scratch
from .layers.patches import PatchEmbed
from .layers.stages import build_stages
from .layers.windows import Pair


def _contiguous(x: Tensor) -> Tensor:
    """`x`, contiguous; an exporter's graph copies it without asking for its strides.

    Whether it is contiguous depends on whether a side is 1, which would be fixed in the graph.
    """
    if torch.compiler.is_exporting():
        return x.clone(memory_format=torch.contiguous_format)
    return x.contiguous()


_logged: set[str] = set()


def _log_once(message: str) -> None:
    if message not in _logged:
        _logged.add(message)
        print_log(message, logger='current')


# Called while torch.compile traces, instead of being traced: what torch.compiler's
# assume_constant_result does, which would import the compiler here.
_log_once._dynamo_marked_constant = True  # type: ignore[attr-defined]


@MODELS.register_module()
class SwinTransformerV2(BaseModule):
    """Swin Transformer V2 for dense prediction: a feature map from each stage.

    Parameters are named as in the official repository (microsoft/Swin-Transformer), with an output
    norm ``norm{i}`` per stage; the official final norm is ``norm3``. Windows matter in the forward
    alone: any window is valid with any weights, at any image size.

    Args:
        arch: 'tiny', 'small', 'base', 'large' (or the initial), or a dict of ``embed_dims``,
            ``depths`` and ``num_heads`` (the last two with one entry per stage).
        in_channels: Channels of the image.
        patch_size: Side of a patch in pixels; the stride of the first map.
        window_size: Attention window in tokens: an int, a (height, width) pair, or one entry per
            stage, each an int or a pair. Windows shrink to maps that are smaller.
        pretrained_window_sizes: Window that the position bias of the checkpoint was trained with,
            in the same forms. It is the unit of the bias, independent of `window_size`;
            ``python -m swinv2_backbone`` prints it for the released checkpoints. The default, 8,
            is that of the w8 releases. None: `window_size`, for training from scratch. 'auto': as
            recorded with the checkpoint, or an error if it records none.
        mlp_ratio: Hidden channels of the MLPs over the channels of their stage.
        drop_rate: Dropout probability after the patch embed, projections and MLPs.
        attn_drop_rate: Dropout probability of attention weights.
        drop_path_rate: Probability of dropping a residual branch in the last block; it rises
            linearly from 0 in the first.
        out_indices: Stages whose maps are returned. Stages after the last of them are not built,
            so that no parameter is without a gradient.
        frozen_stages: -1: nothing is frozen; 0: the patch embed; k: also the first k stages with
            their output norms and patch mergings (the count of mmdet and mmseg; in mmpretrain, 0
            freezes a stage).
        norm_eval: Keep norm layers in eval mode during training. It changes nothing as long as
            all norms are LayerNorms, which have no running statistics.
        with_cp: Recompute each block in the backward instead of keeping its activations: in all
            stages, or one bool per stage. The first stages have the largest maps.
        windows_at_once: Attention windows computed at a time (the paper's sequential
            self-attention), a bound for the attention's memory at any size of the image. None: as
            many as run fastest, also a bound (a few MB on a CPU, 0.5 GB on a GPU).
        init_cfg: mmengine's initialization config. ``dict(type='Pretrained', checkpoint=...)``
            loads a path or URL strictly; see :class:`~.checkpoints.loading.PretrainedSwinV2`.

    Attributes:
        num_features: Channels of each stage that was built.
        out_channels: Channels of each map returned.
        out_strides: Stride in pixels of each map returned.

    Raises:
        TypeError, ValueError: If an argument is not allowed; the message says what is.

    Source:
        SwinV2 paper (arXiv 2111.09883).
    """

    init_cfg: dict | list[dict] | None

    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        patch_size: int = 4,
        window_size: int | Sequence = 8,
        pretrained_window_sizes: int | str | Sequence | None = 8,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool | Sequence[bool] = False,
        windows_at_once: int | None = None,
        init_cfg: dict | list[dict] | None = None,
    ):
        arguments.parse_init_cfg(init_cfg)
        super().__init__(init_cfg=init_cfg)
        arch = arguments.parse_arch(arch)
        self.in_channels = arguments.check_int('in_channels', in_channels, 1)
        self.patch_size = arguments.check_int('patch_size', patch_size, 1)
        windows = arguments.parse_windows('window_size', window_size)
        pretrained_windows = parse_pretrained_windows(pretrained_window_sizes, windows)
        drop_rate = arguments.check_float('drop_rate', drop_rate, 0, 1)
        drop_path_rate = arguments.check_float('drop_path_rate', drop_path_rate, 0, 1)
        self.out_indices = arguments.parse_out_indices(out_indices)
        self.frozen_stages = arguments.check_int(
            'frozen_stages', frozen_stages, -1, arguments.NUM_STAGES
        )
        self.norm_eval = arguments.check_bool('norm_eval', norm_eval)
        if windows_at_once is not None:
            arguments.check_int('windows_at_once', windows_at_once, 1)

        self.num_features = [arch['embed_dims'] * 2**i for i in range(self.out_indices[-1] + 1)]
        self.out_channels = tuple(self.num_features[i] for i in self.out_indices)
        self.out_strides = tuple(self.patch_size * 2**i for i in self.out_indices)

        self.patch_embed = PatchEmbed(self.in_channels, arch['embed_dims'], self.patch_size)
        self.pos_drop = nn.Dropout(drop_rate)
        self.layers = build_stages(
            arch['embed_dims'],
            arch['depths'][: len(self.num_features)],
            arch['num_heads'],
            windows,
            pretrained_windows,
            drop_path_rates(drop_path_rate, sum(arch['depths'])),
            arguments.parse_with_cp(with_cp),
            mlp_ratio=arguments.check_float('mlp_ratio', mlp_ratio, 1 / arch['embed_dims']),
            drop=drop_rate,
            attn_drop=arguments.check_float('attn_drop_rate', attn_drop_rate, 0, 1),
            windows_at_once=windows_at_once,
        )
        for i, channels in zip(self.out_indices, self.out_channels, strict=True):
            self.add_module(f'norm{i}', nn.LayerNorm(channels))
        self._init_deferred = not has_values(self)
        if not self._init_deferred:
            init_from_scratch(self)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of a batch of images.

        Args:
            x: Floating point ``(B, in_channels, H, W)``, any H, W >= 1.

        Returns:
            One ``(B, C_i, ceil(H / s_i), ceil(W / s_i))`` per entry of `out_indices`, with C_i and
            s_i from ``out_channels`` and ``out_strides``; contiguous, or channels_last if x is.

        Raises:
            TypeError: If x is not a floating-point tensor.
            ValueError: If x has another shape, or is empty.
            RuntimeError: If ``pretrained_window_sizes='auto'`` and no checkpoint was loaded.
        """
        arguments.check_images(x, self.in_channels)
        # (A single channel is both.)
        channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        x = self.pos_drop(self.patch_embed(x))
        if not torch.compiler.is_exporting():
            _log_once('window attention: {} ({})'.format(*self.layers[0].choose_attention(x)))
        draws = draw_paths([stage.blocks for stage in self.layers], x)
        outputs = []
        for i, stage in enumerate(self.layers):
            x = stage(x, draws[i])
            if i in self.out_indices:
                normed = norm_map(getattr(self, f'norm{i}'), x).permute(0, 3, 1, 2)
                outputs.append(normed if channels_last else _contiguous(normed))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(outputs)

    @property
    def window_size(self) -> tuple[Pair, ...]:
        """The attention window (height, width) in tokens of each stage that was built."""
        return tuple(stage.window for stage in self.layers)

    def set_window_size(self, window_size: int | Sequence) -> None:
        """Change the attention windows, at any time; the weights stay as they are.

        The model then equals one built with these windows, the same weights, and the same
        `pretrained_window_sizes` (if that was None: the windows it was built with).

        Args:
            window_size: As for the constructor.

        Raises:
            TypeError, ValueError: As the constructor; the windows are unchanged then.
        """
        # (Not strict: with some `out_indices`, the last stages are not built.)
        windows = arguments.parse_windows('window_size', window_size)
        for stage, window in zip(self.layers, windows, strict=False):
            stage.window = window

    def clear_caches(self) -> None:
        """Forget what was computed from the weights: position biases and the like.

        On a GPU this is necessary after weights were written in ways of which torch tells nothing:
        through ``param.data``, as by mmengine's EMAHook (see :class:`~.hooks.ClearCachesHook`), by
        a fused optimizer, by a CUDA graph. Not if ``train()``, ``eval()`` or a call with gradients
        comes between, which do the same; all other writes are noticed, and on a CPU these, too.

        A captured CUDA graph of an eval forward keeps the values of its capture in any case:
        capture it again when weights have changed.
        """
        for stage in self.layers:
            stage.clear_caches()

    @contextmanager
    def window_size_as(self, window_size: int | Sequence) -> Iterator['SwinTransformerV2']:
        """Use other attention windows inside a ``with`` block, e.g. larger ones in testing.

        Args:
            window_size: As for the constructor.

        Yields:
            The model itself. The windows are restored when the block ends, also by an exception.
        """
        before = self.window_size
        self.set_window_size(window_size)
        try:
            yield self
        finally:
            for stage, window in zip(self.layers, before, strict=True):
                stage.window = window

    def init_weights(self) -> None:
        """Initialize according to ``init_cfg``, checkpoints last.

        Without an ``init_cfg`` nothing changes: the constructor has initialized from scratch. If it
        could not, because the model was built on the meta device, that is done here, so call
        ``to_empty`` before.

        Raises:
            FileNotFoundError, ConnectionError, ValueError: If the checkpoint cannot be loaded.
            RuntimeError: If parameters are on the meta device.
        """
        if any(p.is_meta for p in self.parameters()):
            raise RuntimeError(
                'the parameters are on the meta device, where they have no values: call '
                'to_empty(device=...) before init_weights()'
            )
        if self._init_deferred:
            reset_from_scratch(self)
            self._init_deferred = False
        init_cfg = self.init_cfg
        self.init_cfg = with_checkpoints_last(arguments.parse_init_cfg(init_cfg))
        try:
            super().init_weights()
        finally:
            self.init_cfg = init_cfg

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        # The position bias is undefined without its unit, so that is saved with the weights.
        super()._save_to_state_dict(destination, prefix, keep_vars)
        write_metadata(destination, [stage.pretrained_window for stage in self.layers], prefix)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *args
    ) -> None:
        configured = [stage.pretrained_window for stage in self.layers]
        windows = reconcile_metadata(configured, local_metadata, type(self).__name__)
        for stage, window in zip(self.layers, windows, strict=True):
            stage.pretrained_window = window
        self._init_deferred = False  # Else init_weights would overwrite what is loaded.
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """OpenMMLab's interface of :func:`~.layer_depth.layer_depth`."""
        depths = [len(stage.blocks) for stage in self.layers]
        return layer_depth(param_name, prefix, depths, self.out_indices)

    def train(self, mode: bool = True) -> 'SwinTransformerV2':
        """Set training or eval mode; frozen parts, and norms with ``norm_eval``, stay in eval."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if is_norm(module):
                    module.eval()
        return self

    def _freeze_stages(self) -> None:
        frozen = [self.patch_embed, self.pos_drop] if self.frozen_stages >= 0 else []
        for i in range(min(self.frozen_stages, len(self.layers))):
            frozen.append(self.layers[i])
            if i in self.out_indices:
                frozen.append(getattr(self, f'norm{i}'))
        for module in frozen:
            module.eval().requires_grad_(False)
