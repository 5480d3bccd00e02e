"""What the raw times and bytes of a case amount to."""

import numpy as np

from tools.benchmarking.cases import V2_IMPLEMENTATIONS


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, quartiles, their distance and the minimum, in seconds."""
    lower, median, upper = np.percentile(seconds, [25, 50, 75]).tolist()
    return dict(median=median, lower=lower, upper=upper, iqr=upper - lower, min=min(seconds))


def summarize(implementations: dict[str, dict], multiply_adds: int | None) -> dict:
    """Compare the implementations of a case; writes their spreads and ratios into them.

    Args:
        implementations: By name: ``seconds`` (one a round, the same rounds for all), ``bytes`` and
            more. Each gets the keys of :func:`spread`, ``speed`` (times as fast as the fastest
            implementation) and ``limit_fraction`` (the GEMM limit's time over its own); None where there is
            nothing to compare with.
        multiply_adds: Of one step, or None.

    Returns:
        ``fastest_peer`` (by median) and ``smallest_peer`` (by memory), both of the V2 implementations alone;
        ``speed_ratio``: the fastest implementation's median over ours, above 1 if we are faster;
        ``speed_ratio_by_round``: the median of that ratio within each round, which forgives a
        machine whose speed drifts; ``memory_ratio``: ours over the smallest implementation's;
        ``gemm_gflops``: 10**9 floating point operations a second of the GEMM limit, where a
        multiply-add is two. None where an implementation for it is missing.
    """
    for implementation in implementations.values():
        implementation.update(spread(implementation['seconds']))
    others = [name for name in V2_IMPLEMENTATIONS if name in implementations]
    fastest = min(others, key=lambda name: implementations[name]['median'], default=None)
    smallest = min(others, key=lambda name: implementations[name]['bytes'], default=None)
    ours, limit = implementations.get('ours'), implementations.get('gemm')
    for implementation in implementations.values():
        implementation['speed'] = (
            fastest and implementations[fastest]['median'] / implementation['median']
        )
        implementation['limit_fraction'] = limit and limit['median'] / implementation['median']
    compared = ours is not None and fastest is not None
    return dict(
        fastest_peer=fastest,
        smallest_peer=smallest,
        speed_ratio=ours['speed'] if compared else None,
        speed_ratio_by_round=float(
            np.median(np.divide(implementations[fastest]['seconds'], ours['seconds']))
        )
        if compared
        else None,
        memory_ratio=_ratio(ours['bytes'], implementations[smallest]['bytes'])
        if compared
        else None,
        multiply_adds=multiply_adds,
        gemm_gflops=2e-9 * multiply_adds / limit['median'] if limit and multiply_adds else None,
    )


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None
