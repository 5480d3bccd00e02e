"""mmdet's test-time augmentation, for models that also predict masks."""

from mmdet.models.test_time_augs import DetTTAModel
from mmdet.registry import MODELS


@MODELS.register_module()
class BoxTTAModel(DetTTAModel):
    """Merges boxes over the augmentations, and drops masks, which DetTTAModel cannot merge."""

    def merge_preds(self, data_samples_list: list) -> list:
        """Merge ``data_samples_list[image][augmentation]`` into one data sample per image."""
        for sample in (sample for image in data_samples_list for sample in image):
            sample.pred_instances.pop('masks', None)
        return super().merge_preds(data_samples_list)
