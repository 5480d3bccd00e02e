_base_ = [
    '../_base_/models/upernet_swinv2_tiny.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/segmentation_160k.py',
    '../_base_/runtime_segmentation.py',
]
