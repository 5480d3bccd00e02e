# What the segmentors share.
_base_ = '../backbones/swinv2_tiny_w8.py'

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    backbone=dict(drop_path_rate=0.3),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
