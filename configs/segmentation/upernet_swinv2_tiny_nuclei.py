# Bring your own data, with BBBC038 / DSB2018 (nuclei in microscope images) for example. What
# to change for yours: data_root, metainfo, num_classes (twice).
_base_ = [
    '../_base_/models/upernet_swinv2_tiny_scratch.py',
    '../_base_/datasets/folder_semantic.py',
    '../_base_/schedules/segmentation_short.py',
    '../_base_/runtime_segmentation.py',
]
data_root = 'data/nuclei'
dataset = dict(
    data_root=data_root,
    metainfo=dict(classes=('background', 'nucleus'), palette=[[0, 0, 0], [250, 170, 30]]),
)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
model = dict(decode_head=dict(num_classes=2), auxiliary_head=dict(num_classes=2))
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=200))
