# mmseg's configs/mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py: a short side of 256 to 1024.
_base_ = [
    '../_base_/models/mask2former_semantic_swinv2_tiny.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/segmentation_160k_mask2former.py',
    '../_base_/runtime_segmentation.py',
]

resize = dict(
    type='RandomChoiceResize',
    scales=[int(512 * 0.1 * tenths) for tenths in range(5, 21)],
    resize_type='ResizeShortestEdge',
    max_size=2048,
)
train_pipeline = [
    resize if step['type'] == 'RandomResize' else step for step in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
default_hooks = dict(checkpoint=dict(interval=5000))
