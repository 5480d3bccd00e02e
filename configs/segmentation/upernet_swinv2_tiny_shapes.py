# The demo: a few minutes on two CPU cores. tools/dataset_converters/make_shapes.py makes the data.
_base_ = [
    '../_base_/models/upernet_swinv2_tiny_scratch.py',
    '../_base_/datasets/folder_semantic.py',
    '../_base_/schedules/segmentation_short.py',
    '../_base_/runtime_segmentation.py',
]
# Color helps to tell the shapes apart: flips alone, no photometric distortion.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical']),
    dict(type='PackSegInputs'),
]
data_root = 'data/shapes'
dataset = dict(
    data_root=data_root,
    metainfo=dict(
        classes=('background', 'circle', 'square', 'triangle', 'star'),
        palette=[[0, 0, 0], [220, 60, 60], [60, 180, 75], [50, 110, 230], [245, 200, 40]],
    ),
)
train_dataloader = dict(dataset=dict(dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
# Too few iterations to overfit: nothing is dropped.
model = dict(
    backbone=dict(drop_path_rate=0.0),
    decode_head=dict(channels=64, num_classes=5, dropout_ratio=0.0),
    auxiliary_head=dict(num_classes=5, dropout_ratio=0.0),
)
max_iters = 300
optim_wrapper = dict(optimizer=dict(lr=0.002), clip_grad=dict(max_norm=1, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=40, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100))
randomness = dict(seed=0)
