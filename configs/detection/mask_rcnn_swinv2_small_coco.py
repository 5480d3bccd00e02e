_base_ = './mask_rcnn_swinv2_tiny_coco.py'

checkpoint = 'swinv2://swinv2_small_patch4_window8_256'
model = dict(backbone=dict(arch='small', init_cfg=dict(checkpoint=checkpoint)))
