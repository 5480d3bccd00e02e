"""Counting down, with a clock of the test's own."""

from tools.gpu.budget import Budget


def test_budget_counts_down_to_zero():
    now = [100.0]
    budget = Budget(60, clock=lambda: now[0])
    assert (budget.left, budget.used, budget.share(0.5)) == (60, 0, 30)
    now[0] += 40
    assert (budget.left, budget.used, budget.share(0.5), budget.share(1)) == (20, 40, 0, 20)
    now[0] += 40
    assert (budget.left, budget.used, budget.share(1)) == (0, 80, 0)
