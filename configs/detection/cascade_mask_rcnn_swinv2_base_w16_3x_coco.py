_base_ = './cascade_mask_rcnn_swinv2_tiny_w16_3x_coco.py'

checkpoint = 'swinv2://swinv2_base_patch4_window8_256'
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=checkpoint)),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
