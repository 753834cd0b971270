"""Raising the segment size again after the path had been found to take less (RFC 4821, RFC 1191 6.3).

Theory of operation. A path MTU goes down by an ICMP error or by black hole detection (`endpoint.py`), and
paths change back. So `RAISE_AFTER` seconds later one segment of the size that the connection began with is
sent among ordinary data. If it is acknowledged without having been sent again, the path takes that size, and
segments have it from then on. If it alone is lost, that is no sign of congestion (RFC 4821 7.6.2): its bytes
go out again in small segments, cwnd stays, and the next probe, as much later, is larger than what works by
half as much; when the search has narrowed to `NARROW` it begins again at the full size. If more is lost, or
something else had it sent again, the probe has shown nothing (7.6.4). So a path that never recovers costs one
segment in ten minutes, and no time-out can come of it: a probe is sent only with SACK, outside of recovery,
and with `COVER` full segments behind it that show its loss.

There is no timer: a connection that has nothing to send need not know.
"""

from __future__ import annotations

from tunstack.tcp.hot import NEVER

RAISE_AFTER = 600.0
"""Seconds from a reduction, or from a probe that was lost, to the next probe; RFC 1191 6.3 and RFC 8201 4:
not less than 5 min, 10 recommended."""
RAISE_AGAIN = 120.0
"""Seconds from a success to a probe for still more; RFC 1191 6.3: not less than 1 min, 2 recommended."""
COVER = 3
"""Full segments that follow a probe at once (RFC 4821 7.4)."""
NARROW = 32
"""Bytes that are not worth a probe."""


class PathProbe:
    """The search of one connection. Sizes count TCP options, as an MSS does."""

    __slots__ = ("_failed", "_size", "_works", "ceiling", "confirmed", "due", "end", "seq")

    def __init__(self) -> None:
        self.ceiling = 0
        """What both ends would take: the size that the connection began with; 0: not known yet."""
        self.due = NEVER
        """When a probe may be sent (seconds)."""
        self.confirmed = 0
        """A size that was found to work and is not in use yet; 0: none."""
        self.seq = 0
        self.end: int | None = None
        """The probe in flight is [seq, end)."""
        self._works = 0
        self._failed: int | None = None
        """The smallest size that was lost in this search."""
        self._size = 0

    def lowered(self, mss: int, now: float) -> None:
        """The path was found to take no more than `mss`."""
        self.end = None
        self._works = mss
        self._failed = None
        self.due = now + RAISE_AFTER if mss < self.ceiling else NEVER

    @property
    def size(self) -> int:
        """What to probe for next."""
        if self._failed is None:
            return self.ceiling
        return (self._works + self._failed) // 2

    def sent(self, seq: int, end: int, now: float) -> None:
        """[seq, end) left as one segment of `size`."""
        self._size = self.size
        self.seq = seq
        self.end = end
        self.due = now + RAISE_AFTER

    def succeeded(self, now: float) -> None:
        """It was acknowledged."""
        self.end = None
        self.confirmed = self._works = self._size
        if self._failed is not None and self._failed - self._works <= NARROW:
            self._failed = None
            self.due = now + RAISE_AFTER
        else:
            self.due = now + RAISE_AGAIN
        if self._works >= self.ceiling:
            self.due = NEVER

    def failed(self) -> None:
        """It alone was lost."""
        self.end = None
        self._failed = self._size
        if self._failed - self._works <= NARROW:
            self._failed = None

    def cancel(self) -> None:
        """It shows nothing any more."""
        self.end = None
