# UperNet + SwinV2-T for small data sets and CPUs: random weights, BN, a head of 128 channels
# (at 512, the head alone costs six times the backbone).
_base_ = './upernet_swinv2_tiny.py'

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    # None: the window in use is the one that the position bias is trained with.
    backbone=dict(pretrained_window_sizes=None, drop_path_rate=0.1, init_cfg=None),
    decode_head=dict(channels=128, norm_cfg=norm_cfg),
    auxiliary_head=dict(channels=64, norm_cfg=norm_cfg),
)
