# Of detectors that predict no masks.
_base_ = './runtime_detection.py'

default_hooks = dict(checkpoint=dict(save_best='coco/bbox_mAP'))
