"""Files of a data set that would give errors without their name, or wrong results in silence."""

import logging
import pickle

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset
from PIL import Image

cv2 = pytest.importorskip('cv2')
pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, DefaultScope

from tools.data import file_checks
from tools.data.data_hook import plain_datasets
from tools.data.file_checks import check_files
from tools.data.reading import explained_data_errors
from tools.utils.errors import UserError

CLASSES = dict(classes=('background', 'circle', 'square', 'triangle', 'star'))
NUM_IMAGES = 6


def save(path, array, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **kwargs)


@pytest.fixture
def folder(tmp_path):
    """Six images of 24 x 16 pixels and their label maps, of four classes and ignored pixels."""
    rng = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        save(tmp_path / f'images/{index}.png', rng.integers(0, 256, (16, 24, 3), np.uint8))
        labels = rng.integers(0, 4, (16, 24), np.uint8)
        labels[0] = 255
        save(tmp_path / f'labels/{index}.png', labels)
    return tmp_path


def segmentation(folder, **settings):
    defaults = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png',
        metainfo=CLASSES,
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
    )
    return build('mmseg', **{**defaults, **settings})


def build(scope, **settings):
    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build(settings)


def labels_of(folder, change, index=3):
    """Replace a label map by what a function makes of it."""
    path = folder / f'labels/{index}.png'
    save(path, change(np.array(Image.open(path))))


def test_good_files_pass(folder):
    check_files(segmentation(folder), 'mmseg')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda x: x + np.uint8(9), r'has the value \d+ \(as it is loaded\), allowed: 0 to 4, the'),
        (lambda x: np.stack([x, x, x], -1), 'has 3 channels, allowed: one'),
        (lambda x: np.pad(x, ((0, 2), (0, 0))), 'has 24 x 18 pixels, its image 24 x 16 pixels'),
        (lambda x: x.T.copy(), 'has 16 x 24 pixels, its image 24 x 16 pixels'),
        (lambda x: x.astype(np.uint16) + 256, 'has the value 511, allowed: 0 to 255'),
    ],
    ids=['values', 'colors', 'padded', 'turned', '16 bits'],
)
def test_label_maps_that_do_not_fit_are_named(folder, change, message):
    labels_of(folder, change)
    with pytest.raises(UserError, match=rf"label map '.*labels/3\.png' {message}"):
        check_files(segmentation(folder), 'mmseg')


def test_palettes_and_16_bits_of_class_indices_pass(folder):
    path = folder / 'labels/3.png'
    image = Image.fromarray(np.array(Image.open(path)))
    image.putpalette([value % 256 for value in range(768)])
    image.save(path)
    assert Image.open(path).mode == 'P'
    labels_of(folder, lambda x: x.astype(np.uint16), 4)
    labels_of(folder, lambda x: x > 1, 5)  # One bit.
    check_files(segmentation(folder), 'mmseg')


def test_the_values_are_those_after_reduce_zero_label(folder):
    """0 is ignored and 5 is the last class."""
    for index in range(NUM_IMAGES):
        labels_of(folder, lambda x: np.where(x == 255, 5, x).astype(np.uint8), index)
    check_files(segmentation(folder, reduce_zero_label=True), 'mmseg')
    with pytest.raises(UserError, match='has the value 5'):
        check_files(segmentation(folder), 'mmseg')


def binary(x):
    return np.where(x > 1, 255, 0).astype(np.uint8)


def test_masks_of_0_and_255_are_refused(folder):
    for index in range(NUM_IMAGES):
        labels_of(folder, binary, index)
    with pytest.raises(UserError, match=r"all 6 label maps, as '.*\.png', have no other value"):
        check_files(segmentation(folder), 'mmseg')


def test_a_class_in_any_label_map_is_enough(folder, monkeypatch):
    monkeypatch.setattr(file_checks, 'NUM_FILES', 2)
    for index in (0, 1, 2, 3, 5):
        labels_of(folder, binary, index)
    check_files(segmentation(folder), 'mmseg')


@pytest.mark.parametrize('kind', ['images', 'labels'])
@pytest.mark.parametrize('size', [0, 100])
def test_files_that_are_cut_short_are_named(folder, kind, size):
    path = folder / f'{kind}/3.png'
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"'.*{kind}/3\.png' cannot be read: \w+: "):
        check_files(segmentation(folder), 'mmseg')


def test_16_bit_images_are_reported_once(folder):
    for index in range(2):
        save(folder / f'images/{index}.png', np.full((16, 24), 4000 + index, np.uint16))
    lines = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        check_files(segmentation(folder), 'mmseg')
    finally:
        logger.removeHandler(handler)
    [line] = lines
    assert '0.png' in line
    assert 'its largest value, 4000, becomes 15' in line
    assert '(2 images of 16 bits: ' in line


def test_images_of_another_size_than_their_annotations_are_named(folder, tmp_path):
    """An EXIF orientation turns the image, but not its boxes."""
    rotated = Image.Exif()
    rotated[0x0112] = 6
    save(tmp_path / 'x/0.jpg', np.zeros((16, 24, 3), np.uint8), exif=rotated)
    (tmp_path / 'x.json').write_text(
        '{"images": [{"id": 1, "file_name": "0.jpg", "width": 24, "height": 16}], "annotations": '
        '[], "categories": [{"id": 1, "name": "background"}]}'
    )
    dataset = build(
        'mmdet',
        type='CocoDataset',
        ann_file=str(tmp_path / 'x.json'),
        data_prefix=dict(img=str(tmp_path / 'x')),
        metainfo=dict(classes=('background',)),
        pipeline=[dict(type='LoadImageFromFile')],
        test_mode=True,
    )
    message = r"image '.*0\.jpg': 16 x 24 pixels as it is read .*, 24 x 16 pixels in the annotati"
    with pytest.raises(UserError, match=message):
        check_files(dataset, 'mmdet')


def test_the_datasets_inside_of_wrappers(folder):
    dataset = segmentation(folder)
    assert list(plain_datasets(ConcatDataset([dataset, dataset]))) == [dataset, dataset]
    assert list(plain_datasets(RepeatDataset(dataset, 2))) == [dataset]


def test_an_error_in_a_pipeline_names_the_files(folder):
    def fail(data):
        raise ZeroDivisionError('x')

    dataset = segmentation(folder)
    dataset.pipeline.transforms.append(fail)
    with explained_data_errors(), pytest.raises(ZeroDivisionError, match='x') as caught:
        dataset[3]
    [note] = caught.value.__notes__
    assert note == f'(while {folder}/images/3.png and {folder}/labels/3.png was read)'
    with pytest.raises(ZeroDivisionError) as caught:
        dataset[3]
    assert not hasattr(caught.value, '__notes__')


@pytest.mark.parametrize('kind', ['images', 'labels'])
def test_a_file_that_cannot_be_read_in_a_run_is_named(folder, kind):
    path = folder / f'{kind}/3.png'
    path.write_bytes(path.read_bytes()[:100])
    dataset = segmentation(folder)
    with explained_data_errors(), pytest.raises(UserError, match=f"^'{path}' cannot be read: "):
        dataset[3]


def test_a_data_set_without_images_is_named(folder):
    (folder / 'none').mkdir()
    with pytest.raises(UserError) as caught, explained_data_errors():
        segmentation(folder, data_prefix=dict(img_path='none', seg_map_path='labels'))
    assert f"BaseSegDataset: no image in '{folder}/none', '{folder}/labels'" in str(caught.value)
    assert str(caught.value).endswith("with img_suffix='.png'")


def test_other_errors_pass():
    with pytest.raises(ValueError, match='x'), explained_data_errors():
        raise ValueError('x')
    with pytest.raises(pickle.PicklingError), explained_data_errors():
        raise pickle.PicklingError
