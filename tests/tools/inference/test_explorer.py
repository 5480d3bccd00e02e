"""tools/inference/listing.py and explorer.py: models of work dirs, and what they make of images."""

import shutil

import numpy as np
import pytest

from tests.helpers.scripts import call, isolated
from tools.utils import cli
from tools.utils.errors import UserError

for needed in ('mmcv', 'mmdet', 'mmseg', 'matplotlib'):
    pytest.importorskip(needed)

from tools.inference.explorer import Explorer
from tools.inference.listing import list_below, list_models
from tools.inference.uploads import Refused

SEGMENTOR, DETECTOR = 'segmentation_shapes/iter_2.pth', 'detection_shapes/iter_2.pth'


@pytest.fixture(scope='module')
def explorer(work_dirs):
    with isolated():
        yield Explorer(list_below(work_dirs))


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def test_work_dirs_are_listed_by_task(work_dirs, explorer, tmp_path, capsys):
    tasks = {name: each.task for name, each in explorer.listed.items()}
    assert tasks == {DETECTOR: 'detection', SEGMENTOR: 'segmentation'}
    copy = shutil.copytree(work_dirs / 'segmentation_shapes', tmp_path / 'a/segmentation_shapes')
    shutil.copy(copy / 'iter_2.pth', copy / 'best_mIoU_iter_1.pth')
    names = ['segmentation_shapes/iter_2.pth', 'segmentation_shapes/best_mIoU_iter_1.pth']
    assert list(list_models([copy])) == names
    with pytest.raises(UserError, match="got two that are named 'segmentation_shapes'"):
        list_models([copy, work_dirs / 'segmentation_shapes'])
    (broken := tmp_path / 'a/broken').mkdir()
    (broken / 'config.py').write_text('1 +')
    shutil.copy(copy / 'iter_2.pth', broken)
    assert list(list_below(tmp_path / 'a')) == names
    assert 'left out: config' in capsys.readouterr().err
    (empty := tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='no config'):
        list_models([empty])
    with pytest.raises(UserError, match='no work dir of a segmentor or detector in it'):
        list_below(empty)


def test_runtimes_are_those_that_have_a_file(work_dirs, tmp_path, monkeypatch):
    from tools.inference import listing

    folder = shutil.copytree(work_dirs / 'segmentation_shapes', tmp_path / 'x')
    shutil.copy(folder / 'iter_2.pth', folder / 'iter_1.pth')
    for name in ('model.onnx', 'model.xml'):
        (folder / name).touch()
    monkeypatch.setattr(listing, 'find_spec', lambda name: True)
    listed = list_models([folder])
    assert {name: path and path.name for name, path in listed['x/iter_2.pth'].runtimes.items()} == {
        'torch': None,
        'onnxruntime': 'model.onnx',
        'openvino': 'model.xml',
    }
    assert list(listed['x/iter_1.pth'].runtimes) == ['torch']
    given = tmp_path / 'given.onnx'
    assert list_models([folder], [given])['x/iter_2.pth'].runtimes['onnxruntime'] == given
    monkeypatch.setattr(listing, 'find_spec', lambda name: name == 'openvino')
    assert list(list_models([folder])['x/iter_2.pth'].runtimes) == ['torch', 'openvino']
    with pytest.raises(UserError, match='--exported: got 2 work dirs'):
        list_models([folder, work_dirs / 'segmentation_shapes'], [given])


def test_a_segmentation_is_the_toolbox_s_own(explorer, image):
    from mmengine.registry import DefaultScope
    from mmseg.apis import inference_model

    drawn, found = explorer.predict(SEGMENTOR, 'torch', None, image, 0.3)
    assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)
    model = explorer.model(SEGMENTOR, 'torch')
    with DefaultScope.overwrite_default_scope('mmseg'):
        labels = inference_model(model, image).pred_sem_seg.data[0]
    parts = labels.flatten().bincount(minlength=5) / labels.numel()
    classes = model.dataset_meta['classes']
    expected = {classes[i]: f'{part:.1%} of the pixels' for i, part in enumerate(parts) if part}
    assert {each.name: each.amount for each in found} == expected
    palette = dict(zip(classes, map(tuple, model.dataset_meta['palette']), strict=True))
    assert all(each.color == palette[each.name] for each in found)


def test_detections_reach_the_smallest_score(explorer, image):
    before = image.copy()
    _, found = explorer.predict(DETECTOR, 'torch', None, image, 0.0)
    assert found
    drawn, found = explorer.predict(DETECTOR, 'torch', None, image, 1.0)
    assert found == []
    assert (image == before).all()
    # Drawn larger, and otherwise as it is.
    assert drawn.shape == (64 * 8, 96 * 8, 3)
    assert (drawn[::8, ::8, ::-1] == image).all()


def test_a_window_is_used_for_this_call_alone(explorer, image):
    window = cli.window('2')
    backbone = explorer.model(SEGMENTOR, 'torch').backbone
    configured = backbone.window_size
    maps = {}
    for name, each in ('before', None), ('changed', window), ('after', None):
        explorer.predict(SEGMENTOR, 'torch', each, image, 0.3)
        maps[name] = explorer.features(SEGMENTOR, each, image)
        assert backbone.window_size == configured
    for before, changed, after in zip(*maps.values(), strict=True):
        assert (before[0] == after[0]).all()
        assert before[0].shape == changed[0].shape
    assert (maps['before'][0][0] != maps['changed'][0][0]).any()


def test_maps_of_each_stage(explorer, image):
    features = explorer.features(DETECTOR, None, image)
    assert [each.shape for each, _ in features] == [
        (16 >> stage, 24 >> stage, 3) for stage in range(4)
    ]
    assert features[0][1] == 'map 1: 16 x 24 tokens, 16 channels'
    large = explorer.features(DETECTOR, None, image.repeat(16, 0).repeat(16, 1))
    assert large[0][0].shape == (86, 128, 3)  # 512 pixels in width.
    bias = explorer.bias(DETECTOR, cli.window('8x6'))
    assert [len(heads) for _, heads in bias] == [1, 2, 4, 8]
    for title, heads in bias:
        assert ', window 8 x 6: ' in title
        assert {each.shape for each, _ in heads} == {(8, 6, 3)}


def test_models_keep_their_own_colors(explorer, work_dirs, tmp_path, image):
    """Mmengine would give two segmentors the same visualizer."""
    folder = shutil.copytree(work_dirs / 'segmentation_shapes', tmp_path / 'other')
    listed = list_models([folder])
    both = Explorer(explorer.listed | listed)
    model, other = (both.model(name, 'torch') for name in (SEGMENTOR, *listed))
    other.visualizer.dataset_meta = dict(other.dataset_meta, palette=[[1, 2, 3]] * 5)
    drawn = [both.predict(name, 'torch', None, image, 0.3)[0] for name in (SEGMENTOR, *listed)]
    assert model.visualizer is not other.visualizer
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.slow
def test_an_exported_detector_finds_what_its_model_does(work_dirs, tasks, tmp_path, image):
    for needed in ('onnxruntime', 'onnxscript'):
        pytest.importorskip(needed)
    from tools.deployment import export

    folder = shutil.copytree(work_dirs / 'detection_shapes', tmp_path / 'exported')
    arguments = tasks.configs['detection'], folder / 'iter_2.pth', '--out', folder / 'model.onnx'
    call(export.main, *arguments, '--size', 64, '--dynamic')
    runs = Explorer(list_models([folder]))
    with isolated():
        (drawn, found), (other, also) = (
            runs.predict('exported/iter_2.pth', runtime, None, image, 0.0)
            for runtime in ('torch', 'onnxruntime')
        )
    assert len(found) == len(also) > 0
    assert (drawn == other).mean() > 0.99  # A rounding may decide between two boxes.


@pytest.mark.slow
def test_an_exported_file_predicts_what_its_model_does(explorer, work_dirs, tasks, tmp_path, image):
    for needed in ('onnxruntime', 'onnxscript'):
        pytest.importorskip(needed)
    from tools.deployment import export

    folder = shutil.copytree(work_dirs / 'segmentation_shapes', tmp_path / 'exported')
    file, name = folder / 'model.onnx', 'exported/iter_2.pth'
    arguments = tasks.configs['segmentation'], folder / 'iter_2.pth', '--out', file
    call(export.main, *arguments, '--size', 64)
    runs = Explorer(list_models([folder]))
    with isolated():
        drawn = [
            runs.predict(name, runtime, None, image[:64, :64], 0.3)[0]
            for runtime in ('torch', 'onnxruntime')
        ]
        assert (drawn[0] == drawn[1]).mean() > 0.99  # Rounding may decide between two classes.
        with pytest.raises(Refused, match=r'^onnxruntime: got an image of .*takes 64 x 64'):
            runs.predict(name, 'onnxruntime', None, image.repeat(2, 0), 0.3)
        with pytest.raises(Refused, match='the window of an exported file'):
            runs.predict(name, 'onnxruntime', cli.window('4'), image, 0.3)
