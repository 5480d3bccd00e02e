# Instances, 50 epochs, large-scale jittering: mmdet's
# configs/mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py.
_base_ = [
    '../_base_/models/mask2former_swinv2_tiny.py',
    '../_base_/datasets/coco_instance_lsj.py',
    '../_base_/schedules/detection_50e_mask2former.py',
    '../_base_/runtime_detection.py',
]

# Every batch has this size.
pad = dict(
    type='BatchFixedSizePad',
    size=_base_.image_size,
    img_pad_value=0,
    pad_mask=True,
    mask_pad_value=0,
    pad_seg=False,
)
model = dict(data_preprocessor=dict(batch_augments=[pad]))
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5000))
log_processor = dict(by_epoch=False)
