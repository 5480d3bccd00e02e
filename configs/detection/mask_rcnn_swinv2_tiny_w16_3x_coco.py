# Window 16 from the checkpoint of window 8, by Swin V1's recipe for Mask R-CNN 3x with multi-scale
# training (mmdet's configs/swin). Nobody has published a number for SwinV2-T with it.
_base_ = [
    '../_base_/models/mask_rcnn_swinv2_tiny.py',
    '../_base_/datasets/coco_instance_multiscale.py',
    '../_base_/schedules/detection_3x.py',
    '../_base_/runtime_detection.py',
]

model = dict(backbone=dict(window_size=16))
