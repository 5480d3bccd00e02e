# Trained on four images and tested on the same four: a detector that cannot learn these by heart
# is broken somewhere.
_base_ = './mask_rcnn_swinv2_tiny_nuclei.py'

train_dataloader = dict(
    dataset=dict(
        indices=4, pipeline=[t for t in _base_.train_pipeline if t['type'] != 'RandomFlip']
    )
)
# Without an ann_file the metric takes the truth from the images that it is shown, whose
# annotations must then be passed on to it.
pack = dict(type='PackDetInputs', meta_keys=(*_base_.meta_keys, 'instances'))
val_dataloader = dict(
    dataset=dict(
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/train/'),
        indices=4,
        pipeline=[*_base_.test_pipeline[:-1], pack],
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=None)
test_evaluator = val_evaluator
model = dict(backbone=dict(drop_path_rate=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=300, milestones=[240], gamma=0.1),
]
train_cfg = dict(max_iters=300, val_interval=100)
