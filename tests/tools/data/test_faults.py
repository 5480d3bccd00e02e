"""Each fault of a data set ends a run before it, or in it, in one line; all are listed at once."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict

for toolbox in ('mmcv', 'mmdet', 'mmseg', 'pycocotools'):
    pytest.importorskip(toolbox)

from mmengine.registry import DATASETS, DefaultScope

from tests.tools.data import small_data as data
from tests.tools.data.fault_cases import CASES, Case
from tests.tools.data.unusual_cases import FINE, WARNINGS
from tools.data import faults, file_checks
from tools.data.faults import FAULTS_VARIABLE
from tools.data.file_checks import check_files
from tools.data.reading import explained_data_errors
from tools.engine.config_checks import check_data
from tools.misc.check_dataset import check
from tools.utils.errors import UserError

LOADER = 'train_dataloader'
FORMATS = {
    'coco': ('mmdet', data.make_coco, data.coco_settings),
    'semantic': ('mmseg', data.make_semantic, data.semantic_settings),
    'ade20k': ('mmseg', data.make_ade20k, data.ade20k_settings),
}


@contextmanager
def unprivileged(folder: Path, drop: bool) -> Iterator[None]:
    """Be no administrator for a while, who may read all files."""
    if os.geteuid() != 0 or not drop:
        yield
        return
    parents = [p for p in (folder, *folder.parents) if p.stat().st_uid == 0 and p != Path('/')]
    modes = [parent.stat().st_mode for parent in parents]
    for parent, mode in zip(parents, modes, strict=True):
        parent.chmod(mode | 0o555)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for parent, mode in zip(parents, modes, strict=True):
            parent.chmod(mode)


def prepare(case: Case, folder: Path) -> tuple[str, dict]:
    """Make the data set of a case, and return its scope and settings."""
    scope, make, settings = FORMATS[case.form]
    make(folder)
    case.spoil(folder)
    return scope, {**settings(folder), **case.settings}


def build(scope: str, settings: dict):
    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build(dict(settings))


def start_run(scope: str, settings: dict) -> None:
    """Check as train.py does before the first batch."""
    loader = dict(dataset=ConfigDict(settings))
    check_data(Config({'default_scope': scope, LOADER: loader}), LOADER)
    with explained_data_errors(scope):
        check_files(build(scope, settings), scope)


def all_faults(scope: str, settings: dict):
    return check(ConfigDict(settings), scope, LOADER, workers=1).faults


@pytest.mark.parametrize('name', CASES)
def test_faults_end_a_run_before_it_and_are_listed(tmp_path, name, capsys):
    case = CASES[name]
    scope, settings = prepare(case, tmp_path / 'data')
    with unprivileged(tmp_path / 'data', 'permission' in name):
        with pytest.raises(UserError, match=case.message) as ended:
            start_run(scope, settings)
        faults = all_faults(scope, settings)
    line = str(ended.value)
    assert '\n' not in line
    assert str(tmp_path) in line or name.startswith('ADE20K: zero label')
    listed = [fault for fault in faults if line.startswith(fault.message)]
    assert listed, faults
    assert listed[0].is_error


LATE = [name for name, case in CASES.items() if case.late and 'folder' not in name]


@pytest.mark.parametrize('name', LATE)
def test_files_that_get_lost_in_a_run_end_it_in_one_line(tmp_path, name):
    case = CASES[name]
    scope, make, settings = FORMATS[case.form]
    make(tmp_path / 'data')
    dataset = build(scope, settings(tmp_path / 'data'))
    case.spoil(tmp_path / 'data')
    with unprivileged(tmp_path / 'data', 'permission' in name), explained_data_errors(scope):
        dataset[1]
        with pytest.raises(UserError, match=r"2\.(jpg|png)'") as ended:
            dataset[2]
    assert '\n' not in str(ended.value)


@pytest.mark.parametrize('name', WARNINGS)
def test_what_a_toolbox_can_deal_with_is_a_warning(tmp_path, name):
    case = WARNINGS[name]
    scope, settings = prepare(case, tmp_path / 'data')
    start_run(scope, settings)
    found = [f for f in all_faults(scope, settings) if not f.is_error]
    assert found == all_faults(scope, settings)
    assert any(re.search(case.message, fault.message) for fault in found), found


@pytest.mark.parametrize('name', FINE)
def test_unusual_data_that_is_right_passes(tmp_path, name):
    scope, settings = prepare(FINE[name], tmp_path / 'data')
    start_run(scope, settings)
    assert all_faults(scope, settings) == []


def test_all_faults_are_listed_at_once(tmp_path):
    data.make_coco(tmp_path)
    names = ('NaN box', 'RLE that does not fit', 'truncated JPEG', 'duplicate annotation ids')
    for name in names:
        CASES[name].spoil(tmp_path)
    kinds = {fault.kind for fault in all_faults('mmdet', data.coco_settings(tmp_path))}
    assert kinds >= {
        'boxes that are not finite',
        'RLE that does not fit',
        'images that cannot be read',
        'duplicate annotation ids',
    }


def test_a_variable_lets_a_run_start_in_spite_of_faults(tmp_path, monkeypatch):
    scope, settings = prepare(CASES['box outside'], tmp_path / 'data')
    monkeypatch.setenv(FAULTS_VARIABLE, 'warn')
    logged = []
    monkeypatch.setattr(faults, 'print_log', lambda line, **kwargs: logged.append(line))
    start_run(scope, settings)
    [line] = logged
    assert re.search(CASES['box outside'].message, line)


def test_a_test_set_may_have_no_annotations(tmp_path):
    scope, settings = prepare(CASES['no annotations'], tmp_path / 'data')
    dataset = build(scope, {**settings, 'test_mode': True})
    with explained_data_errors(scope):
        assert len(dataset) == data.NUM_IMAGES


def test_a_run_reads_some_files_of_each_data_set(tmp_path, monkeypatch):
    scope, settings = prepare(CASES['truncated JPEG'], tmp_path / 'data')
    monkeypatch.setattr(file_checks, 'NUM_FILES', 2)  # The first and the last.
    start_run(scope, settings)
