# The demo's other task: a few minutes on two CPU cores. tools/make_shapes.py makes the data.
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
        palette=[(220, 60, 60), (60, 180, 75), (50, 110, 230), (245, 200, 40)]))
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/shapes/annotations/instances_val.json')
test_evaluator = val_evaluator
model = dict(roi_head=dict(bbox_head=dict(num_classes=4), mask_head=dict(num_classes=4)))
max_iters = 120
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=max_iters, milestones=[100], gamma=0.1),
]
# No validation on the way: `make demo` tests right afterwards.
train_cfg = dict(max_iters=max_iters, val_interval=max_iters + 1)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(by_epoch=False, interval=40))
log_processor = dict(by_epoch=False)
