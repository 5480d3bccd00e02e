# The demo: a few minutes on two CPU cores. tools/dataset_converters/make_shapes.py makes the data.
_base_ = [
    '../_base_/models/upernet_swinv2_tiny_scratch.py',
    '../_base_/datasets/folder_semantic.py',
    '../_base_/schedules/segmentation_short.py',
    '../_base_/runtime_segmentation.py',
]
dataset = dict(
    data_root='data/shapes',
    metainfo=dict(
        classes=('background', 'circle', 'square', 'triangle', 'star'),
        palette=[[0, 0, 0], [220, 60, 60], [60, 180, 75], [50, 110, 230], [245, 200, 40]],
    ),
)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
model = dict(decode_head=dict(num_classes=5), auxiliary_head=dict(num_classes=5))
max_iters = 180
optim_wrapper = dict(optimizer=dict(lr=0.001))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=20, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=60))
