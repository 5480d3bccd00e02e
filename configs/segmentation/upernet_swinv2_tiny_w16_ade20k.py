# Window 16 from the checkpoint of window 8, by the recipe of the paper (arXiv 2111.09883), which
# reports 47.0 mIoU (single scale) for it with this backbone: table 1, log-spaced CPB, W16.
_base_ = './upernet_swinv2_tiny_ade20k.py'

model = dict(backbone=dict(window_size=16))
optim_wrapper = dict(
    optimizer=dict(lr=0.00004, weight_decay=0.05),
    constructor='swinv2_backbone.SwinV2LayerDecayConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.95),
)
