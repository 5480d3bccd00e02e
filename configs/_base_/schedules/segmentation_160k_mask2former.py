# 160k iterations of 16 images (8 GPUs x 2) with a tenth of the learning rate in the backbone: mmseg's
# configs/mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py. Our constructor at a rate of 1 keeps
# SwinV2's own parameters from decaying, whatever the custom keys say.
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
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, by_epoch=False, begin=0, end=160000)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)
