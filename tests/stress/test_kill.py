"""A training that is killed at any moment goes on and ends as one that never was."""

import pytest

from tests.stress.kill import run


@pytest.mark.parametrize('rounds', [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_trainings_go_on(tmp_path, rounds):
    assert run(rounds, seed=0, folder=tmp_path).total() == rounds
