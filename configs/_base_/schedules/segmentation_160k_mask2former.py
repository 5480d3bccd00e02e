# Mask2Former's 160k iterations of 16 images (8 GPUs x 2):
# mmseg's configs/mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py.
_base_ = './adamw_mask2former.py'

param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, by_epoch=False, begin=0, end=160000)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)
