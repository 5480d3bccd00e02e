# SegFormer's head and recipe (mmseg's configs/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py): ten
# times the learning rate in the head. Our constructor at a rate of 1 keeps what should not decay from it.
_base_ = [
    '../_base_/models/segformer_swinv2_tiny.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/segmentation_160k.py',
    '../_base_/runtime_segmentation.py',
]

optim_wrapper = dict(
    constructor='swinv2_backbone.SwinV2LayerDecayConstructor',
    paramwise_cfg=dict(
        _delete_=True, layer_decay_rate=1.0, custom_keys=dict(decode_head=dict(lr_mult=10.0))
    ),
)
