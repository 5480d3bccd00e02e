"""The time that a report may take: what comes last is left out when it runs out."""

import time
from collections.abc import Callable


class Budget:
    """Counts down from its construction on.

    Args:
        seconds: The whole budget.
        clock: Returns seconds; they only have to increase.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self._end - self._clock())

    @property
    def used(self) -> float:
        """Seconds since the construction."""
        return self._clock() - self._end + self.seconds

    def share(self, fraction: float) -> float:
        """Seconds until this fraction of the whole budget is used, at least 0."""
        return max(0.0, fraction * self.seconds - self.used)
