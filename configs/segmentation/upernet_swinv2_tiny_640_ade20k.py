# Crops of 640, and images of that height in the test, with mmseg's recipe for Swin V1 at 512.
_base_ = [
    '../_base_/models/upernet_swinv2_tiny.py',
    '../_base_/datasets/ade20k_640.py',
    '../_base_/schedules/segmentation_160k.py',
    '../_base_/runtime_segmentation.py',
]

model = dict(data_preprocessor=dict(size=_base_.crop_size))
