# Crops of 512 x 1024, 80k iterations of 8, as mmseg trains UperNet
# (configs/upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py); AdamW as mmseg's SegFormer on Cityscapes
# (lr 0.00006, weight decay 0.01, batches of 8), whose test slides a window of the crop's size, too
# (configs/segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py: a stride of three quarters).
_base_ = [
    '../_base_/models/upernet_swinv2_tiny.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/segmentation_80k.py',
    '../_base_/runtime_segmentation.py',
]

crop_size = _base_.crop_size
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=19),
    auxiliary_head=dict(num_classes=19),
    test_cfg=dict(
        mode='slide', crop_size=crop_size, stride=(crop_size[0] * 3 // 4, crop_size[1] * 3 // 4)
    ),
)
default_hooks = dict(checkpoint=dict(interval=8000))
