"""The interface between a connection and its congestion control.

A connection tells what happened in aggregates, once for each batch of input, so that a fast path that handles
many segments at once and the reference path see the same thing. Windows are in bytes.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol


@dataclasses.dataclass(slots=True)
class AckBatch:
    """What the acknowledgements of one batch add up to."""

    acked: int
    """Bytes newly acknowledged, in sequence or selectively."""
    segments: int
    """How many MSS-sized segments that is, rounded up."""
    rtt: float | None
    """The smallest RTT sample of the batch, in seconds."""
    cwnd_limited: bool
    """Whether cwnd, not the sender or the peer's window, held the flow back."""
    flight: int
    """Bytes outstanding before the acknowledgements."""
    delivered: int = 0
    """Bytes acknowledged since the connection began, this batch included."""
    smoothed_rtt: float | None = None
    """SRTT in seconds, once there is one."""


def initial_window(mss: int) -> int:
    """RFC 6928: min(10 MSS, max(2 MSS, 14600)) bytes."""
    return min(10 * mss, max(2 * mss, 14600))


class CongestionControl(Protocol):
    """Decides `cwnd`. `mss` may change during the life of the connection."""

    cwnd: int
    ssthresh: int
    mss: int

    def on_acks(self, batch: AckBatch, now: float) -> None:
        """New data was acknowledged outside of recovery."""
        ...

    def on_loss(self, flight: int, now: float) -> None:
        """A loss episode begins (fast retransmit): lower `ssthresh` and `cwnd`."""
        ...

    def on_ecn(self, flight: int, now: float) -> None:
        """The peer reports a congestion mark; called at most once a round trip (RFC 3168 6.1.2)."""
        ...

    def on_undo(self, now: float) -> None:
        """The last loss or time-out was spurious: take its consequences back (RFC 4015)."""
        ...

    def on_recovered(self, now: float) -> None:
        """The episode is over: everything that was outstanding at its start is acknowledged."""
        ...

    def on_timeout(self, flight: int, first: bool, now: float) -> None:
        """The retransmission timer expired; `first` tells a new episode from its repetition."""
        ...

    def on_idle_restart(self, now: float) -> None:
        """Nothing was sent for longer than an RTO (RFC 5681 4.1)."""
        ...
