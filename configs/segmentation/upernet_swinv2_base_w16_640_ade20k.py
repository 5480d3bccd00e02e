_base_ = './upernet_swinv2_tiny_w16_640_ade20k.py'

checkpoint = 'swinv2://swinv2_base_patch4_window8_256'
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=checkpoint)),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
