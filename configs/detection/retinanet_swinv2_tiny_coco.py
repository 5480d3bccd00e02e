# 1x by mmdet's recipe for RetinaNet with a transformer (configs/pvt/retinanet_pvt-t_fpn_1x_coco.py:
# AdamW, weight decay 0.0001); its configs/swin trains RetinaNet with SGD, and reports no result.
_base_ = [
    '../_base_/models/retinanet_swinv2_tiny.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/detection_1x.py',
    '../_base_/runtime_detection_boxes.py',
]

optim_wrapper = dict(optimizer=dict(weight_decay=0.0001))
