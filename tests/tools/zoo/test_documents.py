"""docs/model_zoo.md, model-index.yml and the metafiles, against the configs."""

import re
from pathlib import Path

import pytest
import yaml

from tools.zoo.facts import CITED, CONFIGS, ROOT, names
from tools.zoo.measuring import read_results
from tools.zoo.metafile import metafiles
from tools.zoo.page import PAGE, page

FILES = {
    path.relative_to(CONFIGS).with_suffix('').as_posix() for path in CONFIGS.glob('[!_]*/*.py')
}


def read_index():
    """Collections and models of model-index.yml, as OpenMMLab's tools read them."""
    paths = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    parts = [yaml.safe_load((ROOT / path).read_text()) for path in paths]
    return tuple(
        [each for part in parts for each in part[key]] for key in ('Collections', 'Models')
    )


def test_the_documents_are_what_the_command_writes():
    """`make zoo` after a change of the configs."""
    results = read_results()
    for path, text in {PAGE: page(results), **metafiles(results)}.items():
        assert path.read_text() == text, f'{path}: run `make zoo`'


def test_the_page_lists_every_config_and_nothing_else():
    rows = re.findall(r'^\| \[(\w+)\]\(\.\./configs/(\w+)/(\w+)\.py\) \|', PAGE.read_text(), re.M)
    assert all(label == name for label, _, name in rows)
    listed = [f'{folder}/{name}' for _, folder, name in rows]
    assert len(listed) == len(set(listed))
    assert set(listed) == FILES == set(names())


def test_the_index_lists_every_config_and_nothing_else():
    collections, models = read_index()
    assert {model['Config'] for model in models} == {f'configs/{name}.py' for name in FILES}
    assert len(models) == len({model['Name'] for model in models}) == len(FILES)
    known = [collection['Name'] for collection in collections]
    assert len(known) == len(set(known))
    assert {model['In Collection'] for model in models} == set(known)
    assert all((ROOT / each['README']).exists() for each in collections)
    for model in models:
        assert Path(model['Config']).stem == model['Name']
        assert {'Training Data', 'Batch Size', 'Architecture'} <= set(model['Metadata'])
        assert ('Epochs' in model['Metadata']) != ('Iterations' in model['Metadata'])


def test_scores_are_cited_with_their_source_and_no_weights_are_offered():
    _, models = read_index()
    scored = {
        Path(model['Config']).with_suffix('').as_posix() for model in models if 'Results' in model
    }
    assert scored == {f'configs/{name}' for name in CITED}
    for model in models:
        assert 'Weights' not in model
        for result in model.get('Results', ()):
            assert result['Source'].startswith('SwinV2 paper')
            assert set(result['Metrics']) <= {'box AP', 'mIoU', 'Top 1 Accuracy', 'Top 5 Accuracy'}


def test_measured_configs_exist():
    assert set(read_results()) <= FILES


def test_a_new_config_changes_the_documents(monkeypatch, tmp_path):
    """A copy of the configs with one more."""
    pytest.importorskip('mmseg')
    from tools.zoo import facts

    for path in CONFIGS.rglob('*.py'):
        copy = tmp_path / path.relative_to(CONFIGS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    new = tmp_path / 'segmentation/upernet_swinv2_tiny_w16_cityscapes.py'
    new.write_text("_base_ = './upernet_swinv2_tiny_cityscapes.py'\n")
    monkeypatch.setattr(facts, 'CONFIGS', tmp_path)
    assert 'segmentation/upernet_swinv2_tiny_w16_cityscapes' in facts.names()
    assert 'upernet_swinv2_tiny_w16_cityscapes' in page({})
