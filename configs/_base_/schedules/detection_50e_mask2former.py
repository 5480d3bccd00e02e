# Mask2Former's 50 epochs of COCO in batches of 16 (8 GPUs x 2), counted in iterations, with a tenth of the
# learning rate in the backbone: mmdet's configs/mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py.
# Our constructor at a rate of 1 keeps SwinV2's own parameters from decaying, whatever the custom keys say.
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
max_iters = 368750
param_scheduler = [
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        milestones=[327778, 355092],
        gamma=0.1,
    )
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)
