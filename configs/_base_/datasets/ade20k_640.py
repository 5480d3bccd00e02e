# Crops of 640, from images whose short side is 640 at scale 1; as mmseg's ade20k_640x640.py.
_base_ = './ade20k.py'

crop_size = (640, 640)
scale = (2560, 640)
sizes = dict(
    Resize=dict(scale=scale), RandomResize=dict(scale=scale), RandomCrop=dict(crop_size=crop_size)
)
train_pipeline = [dict(step, **sizes.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **sizes.get(step['type'], {})) for step in _base_.test_pipeline]
tta_resizes = [
    dict(type='Resize', scale=(int(2560 * r), int(640 * r)), keep_ratio=True)
    for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[tta_resizes, *_base_.tta_pipeline[1]['transforms'][1:]]),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
