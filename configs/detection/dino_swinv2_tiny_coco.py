# DINO, 4 scales, 12 epochs of batches of 16: mmdet's configs/dino/dino-4scale_r50_8xb2-12e_coco.py, but
# norms, biases and SwinV2's position bias do not decay.
_base_ = [
    '../_base_/models/dino_swinv2_tiny.py',
    '../_base_/datasets/coco_detection_multiscale.py',
    '../_base_/schedules/detection_1x.py',
    '../_base_/runtime_detection_boxes.py',
]

# DETR's augmentation with its own bound on the long side before the crop.
resize, crop = next(step for step in _base_.train_pipeline if step['type'] == 'RandomChoice')[
    'transforms'
]
before_crop = dict(crop[0], scales=[(4200, 400), (4200, 500), (4200, 600)])
choice = dict(type='RandomChoice', transforms=[resize, [before_crop, *crop[1:]]])
train_pipeline = [
    choice if step['type'] == 'RandomChoice' else step for step in _base_.train_pipeline
]
train_dataloader = dict(
    dataset=dict(filter_cfg=dict(filter_empty_gt=False), pipeline=train_pipeline)
)
optim_wrapper = dict(
    optimizer=dict(lr=0.0001, weight_decay=0.0001),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    constructor='swinv2_backbone.SwinV2LayerDecayConstructor',
    paramwise_cfg=dict(
        _delete_=True, layer_decay_rate=1.0, custom_keys=dict(backbone=dict(lr_mult=0.1))
    ),
)
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[11], gamma=0.1)
]
