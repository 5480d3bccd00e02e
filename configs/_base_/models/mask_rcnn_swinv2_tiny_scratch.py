# Mask R-CNN + SwinV2-T for small data sets and CPUs: random weights, small objects, and an
# eighth of the regions an image.
_base_ = './mask_rcnn_swinv2_tiny.py'

model = dict(
    # None: the window in use is the one that the position bias is trained with.
    backbone=dict(pretrained_window_sizes=None, drop_path_rate=0.1, init_cfg=None),
    # Anchors of 16 to 256 pixels: half of COCO's.
    rpn_head=dict(anchor_generator=dict(scales=[4])),
    train_cfg=dict(rpn_proposal=dict(max_per_img=500), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(max_per_img=500)),
)
