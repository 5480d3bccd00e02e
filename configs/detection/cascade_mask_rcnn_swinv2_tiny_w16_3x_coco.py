# Window 16 from the checkpoint of window 8, in the paper's setting on COCO (arXiv 2111.09883): 3x,
# multi-scale. It reports 51.1 box AP for it with this backbone: table 1, log-spaced CPB, W16.
_base_ = [
    '../_base_/models/cascade_mask_rcnn_swinv2_tiny.py',
    '../_base_/datasets/coco_instance_multiscale.py',
    '../_base_/schedules/detection_3x.py',
    '../_base_/runtime_detection.py',
]

model = dict(backbone=dict(window_size=16))
