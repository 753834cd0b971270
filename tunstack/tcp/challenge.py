"""The stack-wide limit of challenge ACKs (RFC 5961 section 7).

A fixed, known limit is a side channel: whoever can exhaust it learns whether others got answers
(CVE-2016-5696). The limit of each second is therefore drawn anew between half and three halves of the
configured number, and each connection has a limit of its own besides.
"""

from __future__ import annotations

import random

PER_CONNECTION_INTERVAL = 0.5
"""Seconds between two challenge ACKs of one connection."""


class ChallengeLimiter:
    """Counts challenge ACKs in seconds of the caller's clock."""

    __slots__ = ("_average", "_left", "_rng", "_second")

    def __init__(self, per_second: int, rng: random.Random) -> None:
        self._average = per_second
        self._rng = rng
        self._second = -1
        self._left = 0

    def allow(self, now: float) -> bool:
        """Whether one more may go out at `now`."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._left = self._average // 2 + self._rng.randrange(self._average + 1)
        if self._left <= 0:
            return False
        self._left -= 1
        return True
