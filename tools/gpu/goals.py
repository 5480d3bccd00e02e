"""The goals for a GPU, and whether measured times and bytes meet them."""

from __future__ import annotations

from dataclasses import dataclass

EAGER = ('',)
GRAPHS = ('', '+graph')
COMPILED = ('+compile', '+compile+graph')


@dataclass(frozen=True)
class Goal:
    """How many times as fast as another network ours shall be, or with how much of its memory.

    Attributes:
        name: What is said of it.
        mode: 'infer' or 'train'.
        other: The network that ours is compared with.
        executions: Of both; each network's fastest of these counts, so that like is compared with
            like.
        factor: The least ratio of speeds; for memory the largest ratio of bytes.
        memory: Whether it is about memory.
    """

    name: str
    mode: str
    other: str
    executions: tuple[str, ...]
    factor: float
    memory: bool = False

    def ratio(self, measured: dict[str, dict]) -> float | None:
        """Of one case; None where one side was not measured.

        Args:
            measured: By name, as 'timm+compile': `median` seconds and `bytes`.
        """
        key = 'bytes' if self.memory else 'median'
        ours, theirs = (
            min((measured[n][key] for e in self.executions if (n := net + e) in measured),
                default=None)
            for net in ('ours', self.other)
        )  # fmt: skip
        if ours is None or theirs is None:
            return None
        return ours / theirs if self.memory else theirs / ours

    def is_met(self, ratio: float) -> bool:
        return ratio <= self.factor if self.memory else ratio >= self.factor


def _of_mode(mode: str, eager: float, compiled: float) -> list[Goal]:
    return [
        Goal('speed over eager timm', mode, 'timm', EAGER, eager),
        Goal('speed over compiled timm', mode, 'timm', COMPILED, compiled),
        Goal('memory over eager timm', mode, 'timm', EAGER, 0.5, memory=True),
        Goal("speed over timm's Swin V1", mode, 'swin_v1', GRAPHS, 1.0),
    ]


GOALS = (*_of_mode('infer', 2.0, 1.3), *_of_mode('train', 2.5, 1.5))


def judge(cases: list[dict]) -> list[dict]:
    """Every goal in every case: its ratio, and 'met', 'not met' or 'not measured'."""
    found = []
    for case in cases:
        for goal in GOALS:
            if goal.mode != case['case']['mode']:
                continue
            ratio = goal.ratio(case['implementations'])
            verdict = 'not measured'
            if ratio is not None:
                verdict = 'met' if goal.is_met(ratio) else 'not met'
            found.append(
                dict(
                    case=case['name'],
                    goal=goal.name,
                    wanted=f'{"<=" if goal.memory else ">="} {goal.factor}',
                    ratio=ratio,
                    verdict=verdict,
                )
            )
    return found
