"""The classes of a config and the categories of its annotations; both lists are shown."""

import json

import pytest
from mmengine.config import ConfigDict

from tools.data.data_checks import check_categories, coco_categories
from tools.utils.errors import UserError


@pytest.fixture
def check(tmp_path):
    """Checks the classes of a config against the categories of a file."""
    pytest.importorskip('mmdet')

    def run(classes, categories, **settings):
        entries = [dict(id=i, name=name) for i, name in enumerate(categories)]
        path = tmp_path / 'a.json'
        path.write_text(json.dumps(dict(images=[], annotations=[], categories=entries)))
        dataset = dict(type='CocoDataset', data_root=str(tmp_path), ann_file='a.json', **settings)
        if classes is not None:
            dataset['metainfo'] = dict(classes=classes)
        check_categories(ConfigDict(dataset), 'train_dataloader')

    return run


@pytest.mark.parametrize(
    ('classes', 'categories', 'message'),
    [
        (
            ('cell',),
            ['nucleus'],
            r"'cell', the categories of '.*a.json' 'nucleus': the file lacks 'cell'",
        ),
        (
            ('a', 'b', 'c'),
            ['a', 'c'],
            r"'a', 'b', 'c', the categories of .* 'a', 'c': the file lacks 'b'",
        ),
        (('a',), [], "the categories of .* none: the file lacks 'a'"),
        (
            ('b', 'a'),
            ['a', 'x', 'b'],
            "'b', 'a', .* 'a', 'x', 'b': list each once and in the order",
        ),
        (('a', 'b'), ['a', 'b', 'a'], "'a', 'b', 'a': list each once and in the order"),
        (None, ['nucleus'], r"classes are 'person', 'bicycle', .*, \.\.\. \(80\), the categories"),
        ('nucleus', ['nucleus'], "classes: got 'nucleus', allowed: a sequence of names as .'nucl"),
    ],
)
def test_classes_that_are_not_the_categories_are_refused(check, classes, categories, message):
    with pytest.raises(UserError, match=message):
        check(classes, categories)


def test_categories_that_are_no_classes_are_named(check, capsys):
    check(('b', 'd'), ['a', 'b', 'c', 'd'])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("train_dataloader: objects of 'a', 'c' are ignored: categories of ")


def test_equal_lists_pass_in_silence(check, capsys):
    check(('a', 'b'), ['a', 'b'])
    assert capsys.readouterr() == ('', '')


def test_classes_may_be_in_a_file(check, tmp_path):
    (tmp_path / 'classes.txt').write_text('a\nb\n')
    check(str(tmp_path / 'classes.txt'), ['a', 'b'])
    with pytest.raises(UserError, match="the file lacks 'b'"):
        check(str(tmp_path / 'classes.txt'), ['a'])


@pytest.mark.parametrize(
    'dataset',
    [
        dict(type='LVISV1Dataset', ann_file='nowhere.json'),  # It reads its file in its own way.
        dict(type='VOCDataset', ann_file='nowhere.txt'),
        dict(type='CocoDataset', ann_file='s3://bucket/a.json'),
        dict(type='CocoDataset', data_root='s3://bucket', ann_file='a.json'),
        dict(type='CocoDataset'),
        dict(type='NoSuchDataset'),
    ],
)
def test_what_is_not_read_as_a_coco_file_is_left_to_mmdet(dataset):
    pytest.importorskip('mmdet')
    check_categories(ConfigDict(dataset), 'train_dataloader')


CATEGORIES = '[{"id": 1, "name": "a b"}, {"id": 3, "name": "\\u00e9"}]'


@pytest.mark.parametrize(
    'text',
    [
        f'{{"images": [], "categories" : \n {CATEGORIES}, "annotations": []}}',
        f'{{"categories":{CATEGORIES}}}',
        f'{{"info": {{"categories": [1]}}, "categories": {CATEGORIES}}}',
        f'{{"info": "the \\"categories\\"", "categories": {CATEGORIES}}}',
    ],
)
def test_the_categories_are_found_wherever_they_are(tmp_path, text):
    (tmp_path / 'x.json').write_text(text)
    assert coco_categories(tmp_path / 'x.json') == ['a b', 'é']


@pytest.mark.parametrize(
    'text', ['[1]', '{"images": []}', '{"categories": 3}', '{"categories": [{"id": 1}]}']
)
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / 'x.json').write_text(text)
    with pytest.raises(UserError, match=r"x\.json': no annotations in COCO's format"):
        coco_categories(tmp_path / 'x.json')


@pytest.mark.parametrize('text', ['', '{"ca', '{"categories": ['])
def test_files_that_are_no_json_are_refused(tmp_path, text):
    (tmp_path / 'x.json').write_text(text)
    with pytest.raises(UserError, match=r"x\.json' cannot be read \("):
        coco_categories(tmp_path / 'x.json')
