"""The statistics behind the bounds: binomial intervals, chi-square, Kolmogorov-Smirnov, percentiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist, median


def binomial_interval(count: int, probability: float, level: float = 0.999) -> tuple[int, int]:
    """The least and the most of `count` that happen, but for (1 - level) / 2 on either side; exact."""
    if probability <= 0 or probability >= 1:
        sure = round(count * min(1.0, max(0.0, probability)))
        return sure, sure
    tail = (1 - level) / 2
    log_p, log_q = math.log(probability), math.log1p(-probability)
    spread = math.sqrt(count * probability * (1 - probability))
    first = max(0, int(count * probability - 12 * spread - 20))
    total, low = 0.0, None
    for k in range(first, count + 1):
        log = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        total += math.exp(log + k * log_p + (count - k) * log_q)
        if low is None and total > tail:
            low = k
        if total >= 1 - tail:
            return low or 0, k
    return low or 0, count


def chi_square_bound(freedom: int, level: float = 0.999) -> float:
    """The quantile of the chi-square distribution, by Wilson and Hilferty."""
    z = NormalDist().inv_cdf(level)
    part = 2 / (9 * freedom)
    return freedom * (1 - part + z * math.sqrt(part)) ** 3


def geometric_fit(lengths: Sequence[int], ending: float) -> tuple[float, int]:
    """Chi-square of run lengths against P(n) = (1 - ending)^(n - 1) ending, and its degrees of freedom.

    Classes are single lengths, the last one open, each with five expected at least.
    """
    total = len(lengths)
    square, n, rest, left = 0.0, 1, 1.0, list(lengths)
    freedom = -1
    while True:
        expected = total * rest * ending
        open_expected = total * rest
        if expected < 5 or open_expected - expected < 5:
            observed = len(left)
            return square + (observed - open_expected) ** 2 / open_expected, max(1, freedom + 1)
        observed = sum(length == n for length in left)
        square += (observed - expected) ** 2 / expected
        left = [length for length in left if length != n]
        rest *= 1 - ending
        n += 1
        freedom += 1


def kolmogorov_smirnov(samples: Sequence[float], cdf: Callable[[float], float]) -> float:
    """The greatest distance between the share of samples below x and `cdf` of x."""
    ordered = sorted(samples)
    count = len(ordered)
    worst = 0.0
    for index, value in enumerate(ordered):
        expected = cdf(value)
        worst = max(worst, abs(expected - index / count), abs(expected - (index + 1) / count))
    return worst


def percentile(values: Sequence[float], part: float) -> float:
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def middle(values: Sequence[float]) -> float:
    """The median."""
    return median(values)
