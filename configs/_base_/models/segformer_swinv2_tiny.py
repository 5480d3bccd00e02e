# The head of mmseg's configs/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py.
_base_ = './segmentor_swinv2_tiny.py'

model = dict(
    decode_head=dict(
        type='SegformerHead',
        in_channels=[96, 192, 384, 768],
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    )
)
