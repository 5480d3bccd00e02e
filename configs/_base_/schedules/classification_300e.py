# 300 epochs of ImageNet in batches of 1024 (8 GPUs x 128), as Swin is trained.
_base_ = './adamw.py'

optim_wrapper = dict(optimizer=dict(lr=0.001), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.001,
        by_epoch=True,
        begin=0,
        end=20,
        convert_to_iter_based=True,
    ),
    dict(type='CosineAnnealingLR', eta_min=0.00001, by_epoch=True, begin=20, end=300),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=1024)
