# 3x, multi-scale, AdamW at 0.0001 with weight decay 0.05, as the Swin paper trains ATSS (arXiv
# 2103.14030, section 4.2).
_base_ = [
    '../_base_/models/atss_swinv2_tiny.py',
    '../_base_/datasets/coco_detection_multiscale.py',
    '../_base_/schedules/detection_3x.py',
    '../_base_/runtime_detection_boxes.py',
]
