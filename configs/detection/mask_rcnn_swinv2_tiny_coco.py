_base_ = [
    '../_base_/models/mask_rcnn_swinv2_tiny.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/detection_1x.py',
    '../_base_/runtime_detection.py',
]
