# 30 epochs of fine-tuning at a larger window, in batches of 1024 (8 GPUs x 128).
_base_ = './classification_300e.py'

optim_wrapper = dict(optimizer=dict(lr=0.00004, weight_decay=1e-8))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.001,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(type='CosineAnnealingLR', eta_min=4e-7, by_epoch=True, begin=5, end=30),
]
train_cfg = dict(max_epochs=30)
