"""SwinTransformerV2, the multi-scale backbone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from mmengine.model import BaseModule, PretrainedInit
from mmengine.model.weight_init import constant_init, trunc_normal_init
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from . import arguments as args
from .checkpoints.loading import PretrainedSwinV2
from .checkpoints.pretrained_windows import (
    parse_pretrained_windows,
    reconcile,
    windows_from_metadata,
    write_metadata,
)
from .layers.blocks import PatchEmbed, SwinTransformerBlock, SwinTransformerStage
from .layers.windows import Pair


def _is_pretrained(init_type: str | type) -> bool:
    """Whether an initializer is mmengine's Pretrained, bare or with a scope in front."""
    name = init_type.rpartition('.')[2] if isinstance(init_type, str) else init_type
    return name in ('Pretrained', 'PretrainedInit', PretrainedInit)


@MODELS.register_module()
class SwinTransformerV2(BaseModule):
    """Swin Transformer V2 for dense prediction: a feature map from each stage.

    Parameters are named as in the official repository (microsoft/Swin-Transformer), with an
    output norm ``norm{i}`` a stage; the official final norm is ``norm3``. Windows are a matter of
    the forward alone: any window runs with any weights, at any image size.

    Args:
        arch: 'tiny', 'small', 'base', 'large' (or the initial), or a dict of ``embed_dims``,
            ``depths`` and ``num_heads`` (four entries each of the last two).
        in_channels: Channels of the image.
        patch_size: Side of a patch in pixels; the stride of the first map.
        window_size: Attention window in tokens: an int, a (height, width) pair, or one entry a
            stage (each an int or a pair). A window larger than the map shrinks to it.
        pretrained_window_sizes: The window with which the checkpoint's position bias was trained,
            in the same forms; it sets the unit of the bias, whatever `window_size` is. Those of the
            published checkpoints: :data:`~.checkpoints.releases.PRETRAINED_WINDOW_SIZES`. None:
            `window_size`, for training from scratch. 'auto': as recorded with the checkpoint, or an
            error if it records none.
        mlp_ratio: Hidden channels of the MLPs over the channels of their stage.
        drop_rate: Dropout probability after the patch embed, projections and MLPs.
        attn_drop_rate: Dropout probability of attention weights.
        drop_path_rate: Probability of dropping a residual branch in the last block; it rises
            linearly from 0 in the first.
        out_indices: Stages whose maps are returned. Stages after the last of them are not built,
            so that no parameter is left without a gradient.
        frozen_stages: -1: nothing is frozen; 0: the patch embed; k: also the first k stages with
            their output norms and patch mergings (as mmdet and mmseg count; mmpretrain's 0 already
            freezes a stage).
        norm_eval: Keep norm layers in eval mode during training. Without effect on the result as
            long as all norms are LayerNorm, which has no running statistics.
        with_cp: Recompute each block in the backward instead of keeping its activations.
        windows_at_once: Attention windows in flight at a time, the paper's sequential
            self-attention: bounds the memory of the attention, whatever the size of the image.
            None: as many as run fastest, which is a bound, too (a few MB on a CPU, 0.5 GB on a
            GPU).
        init_cfg: mmengine's initialization config. ``dict(type='Pretrained', checkpoint=...)``
            loads a path or URL strictly; see :class:`~.checkpoints.loading.PretrainedSwinV2`.

    Attributes:
        num_features: Channels of each stage that was built.
        out_channels: Channels of each map returned.
        out_strides: Stride in pixels of each map returned.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range; the message says what is allowed.

    Source:
        SwinV2 paper (arXiv 2111.09883).
    """

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
        with_cp: bool = False,
        windows_at_once: int | None = None,
        init_cfg: dict | list[dict] | None = None,
    ):
        args.parse_init_cfg(init_cfg)
        super().__init__(init_cfg=init_cfg)
        arch = args.parse_arch(arch)
        self.in_channels = args.check_int('in_channels', in_channels, 1)
        self.patch_size = args.check_int('patch_size', patch_size, 1)
        windows = args.parse_windows('window_size', window_size)
        pretrained_windows = parse_pretrained_windows(pretrained_window_sizes, windows)
        drop_rate = args.check_probability('drop_rate', drop_rate)
        self.out_indices = args.parse_out_indices(out_indices)
        self.frozen_stages = args.check_int('frozen_stages', frozen_stages, -1, args.NUM_STAGES)
        self.norm_eval = args.check_bool('norm_eval', norm_eval)
        block_args = dict(
            mlp_ratio=args.check_mlp_ratio(mlp_ratio, arch['embed_dims']),
            drop=drop_rate,
            attn_drop=args.check_probability('attn_drop_rate', attn_drop_rate),
            windows_at_once=windows_at_once,
        )
        with_cp = args.check_bool('with_cp', with_cp)
        if windows_at_once is not None:
            args.check_int('windows_at_once', windows_at_once, 1)

        num_stages = self.out_indices[-1] + 1
        self.num_features = [arch['embed_dims'] * 2**i for i in range(num_stages)]
        self.out_channels = tuple(self.num_features[i] for i in self.out_indices)
        self.out_strides = tuple(self.patch_size * 2**i for i in self.out_indices)

        depths = arch['depths']
        drop_paths = torch.linspace(
            0, args.check_probability('drop_path_rate', drop_path_rate), sum(depths)
        ).tolist()
        self.patch_embed = PatchEmbed(self.in_channels, arch['embed_dims'], self.patch_size)
        self.pos_drop = nn.Dropout(drop_rate)
        self.layers = nn.ModuleList(
            SwinTransformerStage(
                self.num_features[i],
                depths[i],
                arch['num_heads'][i],
                windows[i],
                pretrained_windows[i],
                drop_paths[sum(depths[:i]) : sum(depths[: i + 1])],
                downsample=i < num_stages - 1,
                with_cp=with_cp,
                **block_args,
            )
            for i in range(num_stages)
        )
        for i, channels in zip(self.out_indices, self.out_channels, strict=True):
            self.add_module(f'norm{i}', nn.LayerNorm(channels))
        self._init_from_scratch()
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of a batch of images.

        Args:
            x: Floating point ``(B, in_channels, H, W)``, any H, W >= 1.

        Returns:
            One contiguous ``(B, C_i, ceil(H / s_i), ceil(W / s_i))`` an entry of `out_indices`,
            with C_i and s_i as in ``out_channels`` and ``out_strides``.

        Raises:
            TypeError: If x is no floating-point tensor.
            ValueError: If x has another shape, or is empty.
            RuntimeError: If no checkpoint has told yet what ``pretrained_window_sizes='auto'`` is.
        """
        self._check_input(x)
        if self.layers[0].pretrained_window is None:
            raise RuntimeError(
                "pretrained_window_sizes='auto': no checkpoint has told it yet; call "
                'init_weights() or load a state dict of this backbone, or set it'
            )
        x = self.pos_drop(self.patch_embed(x))
        outputs = []
        for i, stage in enumerate(self.layers):
            x = stage(x)
            if i in self.out_indices:
                normed = getattr(self, f'norm{i}')(x)
                outputs.append(normed.permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(outputs)

    @property
    def window_size(self) -> tuple[Pair, ...]:
        """The attention window (height, width) in tokens of each stage that was built."""
        return tuple(stage.window for stage in self.layers)

    def set_window_size(self, window_size: int | Sequence) -> None:
        """Change the attention windows of a model, loaded and trained as it may be.

        From now on it computes what a model built with these windows, and the same
        `pretrained_window_sizes` and weights, computes. No weights are touched. (A model built with
        ``pretrained_window_sizes=None`` keeps the windows it was built with as the unit of its
        position bias.)

        Args:
            window_size: In the constructor's forms.

        Raises:
            TypeError, ValueError: If it is in none of them; nothing is changed then.
        """
        # (Not strict: `out_indices` may leave out the last stages.)
        windows = args.parse_windows('window_size', window_size)
        for stage, window in zip(self.layers, windows, strict=False):
            stage.window = window

    @contextmanager
    def window_size_as(self, window_size: int | Sequence) -> Iterator['SwinTransformerV2']:
        """Use other attention windows inside a ``with`` block, as for testing at larger ones.

        Args:
            window_size: As for :meth:`set_window_size`.

        Yields:
            The model itself. Its windows are as before when the block ends, however it does.
        """
        before = self.window_size
        self.set_window_size(window_size)
        try:
            yield self
        finally:
            for stage, window in zip(self.layers, before, strict=True):
                stage.window = window

    def _check_input(self, x: Tensor) -> None:
        wanted = f'a floating-point tensor (B, {self.in_channels}, H, W)'
        if not isinstance(x, Tensor):
            raise TypeError(f'x: got a {type(x).__name__}, allowed: {wanted}')
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'x: got shape {tuple(x.shape)}, allowed: {wanted}')
        if not x.is_floating_point():
            raise TypeError(f'x: got {x.dtype}, allowed: {wanted}')
        if 0 in x.shape:
            raise ValueError(
                f'x: got an empty tensor of shape {tuple(x.shape)}, allowed: {wanted} '
                'with B, H, W >= 1'
            )

    def init_weights(self) -> None:
        """Initialize as ``init_cfg`` says, a checkpoint last.

        The constructor has already done what training from scratch needs, so without an
        ``init_cfg`` nothing changes.

        Raises:
            FileNotFoundError, ConnectionError, ValueError: If the checkpoint cannot be loaded.
        """
        given = self.init_cfg
        configs = args.parse_init_cfg(given)
        pretrained = [cfg for cfg in configs if _is_pretrained(cfg['type'])]
        self.init_cfg = [cfg for cfg in configs if not _is_pretrained(cfg['type'])] + [
            {**cfg, 'type': PretrainedSwinV2} for cfg in pretrained
        ]
        try:
            super().init_weights()
        finally:
            self.init_cfg = given

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        # The position bias is undefined without its unit, so that is saved with the weights.
        super()._save_to_state_dict(destination, prefix, keep_vars)
        write_metadata(destination, [stage.pretrained_window for stage in self.layers], prefix)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *args
    ) -> None:
        recorded = windows_from_metadata({'': local_metadata})
        if recorded:
            windows = reconcile(
                [stage.pretrained_window for stage in self.layers],
                recorded,
                f'state dict of a {type(self).__name__}',
                'its metadata',
            )
            for stage, window in zip(self.layers, windows, strict=True):
                stage.pretrained_window = window
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _init_from_scratch(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_init(module, std=0.02)
        for module in self.modules():
            # Residual branches end in a norm. With its weight at zero, too, each block starts as
            # the identity: the official model's recipe, without which large ones diverge.
            if isinstance(module, SwinTransformerBlock):
                constant_init(module.norm1, 0)
                constant_init(module.norm2, 0)

    def train(self, mode: bool = True) -> 'SwinTransformerV2':
        """Set the mode, except for what is frozen."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, (nn.LayerNorm, _NormBase)):
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
