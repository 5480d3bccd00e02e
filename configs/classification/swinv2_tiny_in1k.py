# ImageNet-1K, 256 pixels, window 8. Trained from scratch for 300 epochs it is to reach the paper's
# 81.8 / 95.9 top-1 / top-5 (arXiv 2111.09883; not trained here). To see that the released weights
# do, convert them with their classifier, and test them:
#
#   python tools/model_converters/convert_checkpoint.py \
#       swinv2://swinv2_tiny_patch4_window8_256 work_dirs/swinv2_tiny.pth --to swinv2_backbone
#   python tools/test.py configs/classification/swinv2_tiny_in1k.py work_dirs/swinv2_tiny.pth
_base_ = [
    '../_base_/models/classifier_swinv2_tiny.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/classification_300e.py',
    '../_base_/runtime_classification.py',
]

model = dict(backbone=dict(init_cfg=None))
