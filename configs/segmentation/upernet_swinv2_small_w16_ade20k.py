_base_ = './upernet_swinv2_tiny_w16_ade20k.py'

checkpoint = 'swinv2://swinv2_small_patch4_window8_256'
model = dict(backbone=dict(arch='small', init_cfg=dict(checkpoint=checkpoint)))
