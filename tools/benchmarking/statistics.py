"""Statistics of the raw times and bytes of a case."""

import numpy as np

from tools.benchmarking.cases import is_another_v2, network_of


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, quartiles, their distance and the minimum, in seconds."""
    lower, median, upper = np.percentile(seconds, [25, 50, 75]).tolist()
    return dict(median=median, lower=lower, upper=upper, iqr=upper - lower, min=min(seconds))


def summarize(measured: dict[str, dict], multiply_adds: int | None) -> dict:
    """Compare the implementations of a case; writes their statistics and ratios into `measured`.

    Args:
        measured: By name: ``seconds`` (one per round, the same rounds for all), ``bytes`` and
            more. Each gets the keys of :func:`spread`, ``speed`` (times as fast as the fastest
            other implementation) and ``limit_fraction`` (the time of the GEMM limit over its
            own); None where there is nothing to compare with.
        multiply_adds: Of one step, or None.

    Returns:
        ``fastest_implementation`` (by median) and ``smallest_implementation`` (by memory), both
        among the other implementations of SwinV2; ``fastest_ours``: 'ours', in the execution that
        is fastest; ``speed_ratio``: the fastest other's median over its, above 1 if ours is
        faster; ``speed_ratio_by_round``: the median of that ratio within each round, for a machine
        whose speed drifts; ``memory_ratio``: its memory over the smallest one's; ``gemm_gflops``:
        10**9 floating point operations per second of the GEMM limit, where a multiply-add is two.
        Each is None where what it needs was not measured.
    """
    for each in measured.values():
        each.update(spread(each['seconds']))
    others = [name for name in measured if is_another_v2(name)]
    ours_names = [name for name in measured if network_of(name) == 'ours']
    fastest = min(others, key=lambda name: measured[name]['median'], default=None)
    smallest = min(others, key=lambda name: measured[name]['bytes'], default=None)
    best = min(ours_names, key=lambda name: measured[name]['median'], default=None)
    ours, limit = best and measured[best], measured.get('gemm')
    for each in measured.values():
        each['speed'] = fastest and measured[fastest]['median'] / each['median']
        each['limit_fraction'] = limit and limit['median'] / each['median']
    result = dict(
        fastest_implementation=fastest,
        smallest_implementation=smallest,
        fastest_ours=best,
        speed_ratio=None,
        speed_ratio_by_round=None,
        memory_ratio=None,
        multiply_adds=multiply_adds,
        gemm_gflops=2e-9 * multiply_adds / limit['median'] if limit and multiply_adds else None,
    )
    if ours is not None and fastest is not None:
        by_round = np.divide(measured[fastest]['seconds'], ours['seconds'])
        smallest_bytes = measured[smallest]['bytes']
        result['speed_ratio'] = ours['speed']
        result['speed_ratio_by_round'] = float(np.median(by_round))
        result['memory_ratio'] = ours['bytes'] / smallest_bytes if smallest_bytes else None
    return result
