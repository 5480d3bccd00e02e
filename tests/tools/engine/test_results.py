"""The closing table of a test."""

from tools.engine.results import results_table


def test_detector_has_a_row_for_boxes_and_one_for_masks():
    metrics = {f'coco/{kind}_mAP{iou}': 0.5 for kind in ('bbox', 'segm') for iou in ('', '_50')}
    without_masks = {'coco/bbox_mAP': 0.25, 's/image': 2.0}
    table = results_table({'model': metrics, 'other': without_masks}, 'mmdet')
    assert [line.split() for line in table.split('\n')] == [
        ['AP', 'AP50', 'AP75', 's/image'],
        ['model', 'bbox', '0.500', '0.500', '-', '-'],
        ['model', 'segm', '0.500', '0.500', '-', '-'],
        ['other', 'bbox', '0.250', '-', '-', '2.000'],
    ]


def test_classifier():
    table = results_table({'model': {'accuracy/top1': 81.8, 'accuracy/top5': 95.9}}, 'mmpretrain')
    assert [line.split() for line in table.split('\n')] == [
        ['top-1', 'top-5'],
        ['model', '81.800', '95.900'],
    ]
