"""Test-time augmentation of mmdet's, for models that also predict masks."""

from mmdet.models.test_time_augs import DetTTAModel
from mmdet.registry import MODELS


@MODELS.register_module()
class BoxTTAModel(DetTTAModel):
    """Merge boxes over the augmentations; leave masks out, which DetTTAModel refuses to merge."""

    def merge_preds(self, data_samples_list: list) -> list:
        """``data_samples_list[image][augmentation]`` to one data sample an image."""
        for sample in (sample for image in data_samples_list for sample in image):
            sample.pred_instances.pop('masks', None)
        return super().merge_preds(data_samples_list)
