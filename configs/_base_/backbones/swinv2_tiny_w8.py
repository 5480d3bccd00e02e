# SwinV2-T with window 8, from Microsoft's ImageNet-1K weights (trained at window 8, 256 x 256).
# `python -m swinv2_backbone` shows what else could stand after swinv2://.
model = dict(
    backbone=dict(
        type='swinv2_backbone.SwinTransformerV2',
        arch='tiny',
        window_size=8,
        pretrained_window_sizes=8,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='swinv2://swinv2_tiny_patch4_window8_256'),
    )
)
