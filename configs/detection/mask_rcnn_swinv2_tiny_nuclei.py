# Bring your own data, with BBBC038 / DSB2018 (nuclei in microscope images) for example. What
# to change for yours: data_root, metainfo, num_classes (twice).
_base_ = [
    '../_base_/models/mask_rcnn_swinv2_tiny_scratch.py',
    '../_base_/datasets/folder_instance.py',
    '../_base_/schedules/detection_short.py',
    '../_base_/runtime_detection.py',
]
data_root = 'data/nuclei'
dataset = dict(data_root=data_root, metainfo=dict(classes=('nucleus',), palette=[(250, 170, 30)]))
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}/annotations/instances_val.json')
test_evaluator = val_evaluator
model = dict(roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)))
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(by_epoch=False, interval=100))
log_processor = dict(by_epoch=False)
