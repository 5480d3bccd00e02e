# Mask2Former's 50 epochs of COCO in batches of 16 (8 GPUs x 2), counted in iterations:
# mmdet's configs/mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py.
_base_ = './adamw_mask2former.py'

max_iters = 368750
param_scheduler = [
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        milestones=[327778, 355092],
        gamma=0.1,
    )
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)
