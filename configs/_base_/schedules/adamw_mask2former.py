# Mask2Former's AdamW, with a tenth of the learning rate in the backbone. Our constructor at a rate of 1
# keeps SwinV2's own parameters from decaying, whatever the custom keys say.
no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='swinv2_backbone.SwinV2LayerDecayConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=1.0,
        custom_keys=dict(
            backbone=dict(lr_mult=0.1),
            query_embed=no_decay,
            query_feat=no_decay,
            level_embed=no_decay,
        ),
    ),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
