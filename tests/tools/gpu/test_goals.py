"""Goals are judged by what was measured, like with like."""

import pytest

from tools.gpu.goals import judge

TIMES = {
    'ours': 5.0,
    'ours+graph': 3.0,
    'ours+compile': 4.0,
    'ours+compile+graph': 2.0,
    'timm': 12.0,
    'timm+graph': 1.0,  # Of no goal.
    'timm+compile': 2.5,
    'swin_v1': 4.0,
    'swin_v1+graph': 2.0,
}


def case(mode, times, memory=60):
    entries = {name: dict(median=time, bytes=memory) for name, time in times.items()}
    if 'timm' in entries:
        entries['timm']['bytes'] = 100
    return dict(name='a case', case=dict(mode=mode), implementations=entries)


def verdicts(*args):
    return {each['goal']: (each['ratio'], each['verdict']) for each in judge([case(*args)])}


def test_inference():
    assert verdicts('infer', TIMES) == {
        'speed over eager timm': (12 / 5, 'met'),
        'speed over compiled timm': (2.5 / 2, 'not met'),
        'memory over eager timm': (0.6, 'not met'),
        "speed over timm's Swin V1": (pytest.approx(2 / 3), 'not met'),
    }


def test_training_has_goals_of_its_own():
    assert verdicts('train', TIMES, 50)['speed over eager timm'] == (12 / 5, 'not met')
    assert verdicts('train', TIMES, 50)['memory over eager timm'] == (0.5, 'met')


def test_what_was_not_measured_is_neither_met_nor_not():
    found = verdicts('infer', {'ours': 1.0, 'swin_v1': 1.0})
    assert found["speed over timm's Swin V1"] == (1.0, 'met')
    assert found['speed over compiled timm'] == (None, 'not measured')
    assert found['memory over eager timm'] == (None, 'not measured')
