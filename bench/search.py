"""The highest rate that passes a test, found by doubling or halving and then by bisection."""

from __future__ import annotations

import math
from collections.abc import Callable


def highest(
    attempt: Callable[[float], float | None],
    *,
    start: float,
    growth: float,
    ceiling: float,
    precision: float = 1.05,
    short: float = 0.8,
    attempts: int = 16,
) -> float:
    """The highest rate that passed, at most `precision` times lower than one that did not; 0 if none did.

    `attempt` tries a rate and returns the one that was really offered, or None if it did not pass.

    Args:
        start: the rate to begin with.
        growth: above 1: the next rate is so many times higher, or lower, until one passes and one fails.
        ceiling: no rate above this one is tried.
        short: of a rate of which less than this share was offered the sender can do no more.
        attempts: the most that are made.
    """
    passed = 0.0
    low, high = 0.0, math.inf
    rate = min(start, ceiling)
    for _ in range(attempts):
        offered = attempt(rate)
        if offered is None:
            high = rate
        else:
            passed = max(passed, offered)
            if offered < short * rate:
                low, high = max(low, offered), rate
            else:
                low = rate
        if high == math.inf:
            if rate >= ceiling:
                break
            rate = min(rate * growth, ceiling)
        elif not low:
            rate = high / growth
        elif high / low <= precision:
            break
        else:
            rate = math.sqrt(low * high)
    return passed
