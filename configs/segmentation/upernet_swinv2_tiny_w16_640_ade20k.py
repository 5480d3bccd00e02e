# The recipe of upernet_swinv2_tiny_w16_ade20k.py with crops of 640. The paper has no number for this size.
_base_ = './upernet_swinv2_tiny_640_ade20k.py'

model = dict(backbone=dict(window_size=16))
optim_wrapper = dict(
    optimizer=dict(lr=0.00004, weight_decay=0.05),
    constructor='swinv2_backbone.SwinV2LayerDecayConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.95),
)
