"""Round-trip estimation and the retransmission time-out (RFC 6298).

Differences from the RFC's constants, and why: the RTO lies at least 200 ms above SRTT, as in Linux,
instead of at 1 s (section 2.4 SHOULD), because the guest is usually microseconds away and its delayed ACK
is bounded by 40-200 ms. Above and not at: where a queue grows slowly the variance is next to nothing, and
an RTO of hardly more than the RTT would expire just before the ACK of each fast retransmission. The upper
bound is 60 s (2.5).
Samples come from segments that were sent once (Karn's rule); the clock granularity G is taken as 1 ms.
"""

from __future__ import annotations

INITIAL_RTO = 1.0
MIN_RTO = 0.2
MAX_RTO = 60.0
GRANULARITY = 0.001
SYN_LOST_RTO = 3.0
"""RFC 6298 5.7: after a lost SYN the data phase starts with this, unless a sample was taken."""
MIN_RTT_MEMORY = 300.0
"""Seconds for which a small RTT is remembered; then the path is longer than it was. Linux takes as many."""


class RttEstimator:
    """SRTT, RTTVAR and RTO, in seconds."""

    __slots__ = ("backoff", "min_rtt", "rto", "rttvar", "smallest_at", "srtt")

    def __init__(self) -> None:
        self.srtt: float | None = None
        self.rttvar = 0.0
        self.rto = INITIAL_RTO
        self.min_rtt = float("inf")
        """The smallest sample of the last `MIN_RTT_MEMORY` seconds, or so (RFC 8985 6.2 step 1)."""
        self.smallest_at = 0.0
        """When it was taken."""
        self.backoff = 0
        """Time-outs in a row without an acknowledgement of new data."""

    def sample(self, rtt: float, now: float) -> None:
        """Take one measurement of a segment that was not retransmitted (2.2, 2.3)."""
        if rtt <= self.min_rtt or now - self.smallest_at >= MIN_RTT_MEMORY:
            self.min_rtt = rtt
            self.smallest_at = now
        if self.srtt is None:
            self.srtt = rtt
            self.rttvar = rtt / 2
        else:
            self.rttvar += (abs(self.srtt - rtt) - self.rttvar) / 4
            self.srtt += (rtt - self.srtt) / 8
        self.rto = min(MAX_RTO, self.srtt + max(MIN_RTO, 4 * self.rttvar))

    def progress(self) -> None:
        """New data was acknowledged: the back-off ends (5.3 restarts with the computed RTO)."""
        self.backoff = 0

    def timed_out(self) -> None:
        """Back the timer off (5.5)."""
        self.backoff += 1

    @property
    def current(self) -> float:
        """The time-out to arm now, back-off included (seconds)."""
        return min(MAX_RTO, self.rto * (1 << min(self.backoff, 16)))
