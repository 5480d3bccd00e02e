# The demo's other task: a few minutes on two CPU cores. tools/dataset_converters/make_shapes.py makes the data.
_base_ = [
    '../_base_/models/mask_rcnn_swinv2_tiny_scratch.py',
    '../_base_/datasets/folder_instance.py',
    '../_base_/schedules/detection_short.py',
    '../_base_/runtime_detection.py',
]
dataset = dict(
    data_root='data/shapes',
    metainfo=dict(
        classes=('circle', 'square', 'triangle', 'star'),
        palette=[(220, 60, 60), (60, 180, 75), (50, 110, 230), (245, 200, 40)],
    ),
)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/shapes/annotations/instances_val.json')
test_evaluator = val_evaluator
# Half the channels of the neck and heads: on images of 128 pixels they cost more than the backbone.
channels = 128
model = dict(
    neck=dict(out_channels=channels),
    rpn_head=dict(in_channels=channels, feat_channels=channels),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        bbox_head=dict(num_classes=4, in_channels=channels, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=channels),
        mask_head=dict(num_classes=4, in_channels=channels, conv_out_channels=channels),
    ),
    test_cfg=dict(rcnn=dict(max_per_img=30)),
)  # of at most seven shapes
max_iters = 160
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=max_iters, milestones=[135], gamma=0.1),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(by_epoch=False, interval=60))
log_processor = dict(by_epoch=False)
