# The demo's other task: a few minutes on two CPU cores. tools/dataset_converters/make_shapes.py makes the data.
_base_ = [
    '../_base_/models/mask_rcnn_swinv2_tiny_scratch.py',
    '../_base_/datasets/folder_instance.py',
    '../_base_/schedules/detection_short.py',
    '../_base_/runtime_detection.py',
]
data_root = 'data/shapes'
dataset = dict(
    data_root=data_root,
    metainfo=dict(
        classes=('circle', 'square', 'triangle', 'star'),
        palette=[(220, 60, 60), (60, 180, 75), (50, 110, 230), (245, 200, 40)],
    ),
)
train_dataloader = dict(batch_size=4, dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}/annotations/instances_val.json')
test_evaluator = val_evaluator
# A quarter of the channels of the neck and heads: on images of 128 pixels they cost more than the
# backbone. Normalization in the neck speeds up the start from random weights.
channels = 64
proposals = dict(nms_pre=500, max_per_img=100)
model = dict(
    backbone=dict(drop_path_rate=0.0),  # too few iterations to overfit
    neck=dict(out_channels=channels, num_outs=4, norm_cfg=dict(type='BN', requires_grad=True)),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        # The boxes are about square, of 16 to 80 pixels.
        anchor_generator=dict(scales=[4, 5.6], ratios=[1.0], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        # Class-agnostic: every box trains the same regression.
        bbox_head=dict(
            num_classes=4, in_channels=channels, fc_out_channels=256, reg_class_agnostic=True
        ),
        mask_roi_extractor=dict(out_channels=channels),
        mask_head=dict(
            num_convs=2, num_classes=4, in_channels=channels, conv_out_channels=channels
        ),
    ),
    train_cfg=dict(rpn_proposal=proposals),
    test_cfg=dict(rpn=proposals, rcnn=dict(max_per_img=20)),
)  # of at most five shapes
max_iters = 300
optim_wrapper = dict(optimizer=dict(lr=0.001), clip_grad=dict(max_norm=5))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=30, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(by_epoch=False, interval=100))
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
