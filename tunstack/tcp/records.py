"""What was sent, and what an acknowledgement tells about it.

`SentRecord` is one entry of the scoreboard, `Delivery` the sum of what one acknowledgement says for the first
time: how much arrived, and when it was sent, which RTT, RACK and congestion control want to know.
Which of several transmissions arrived only a timestamp can tell (Karn's rule, RFC 6298 3).
"""

from __future__ import annotations

from tunstack.tcp.seq import MASK, le, lt

_ROUNDING = 1.001
"""Two measurements of the same RTT differ by what floating point makes of them."""


class SentRecord:
    """Sequence numbers [seq, end), last sent at `sent_at` (seconds) in segments of `mss` bytes.

    `transmissions` is how often they were sent; 0 if they were sacked once and that was taken
    back, so that their arrival tells nothing about time.
    """

    __slots__ = (
        "end",
        "lost",
        "mss",
        "newer",
        "older",
        "sacked",
        "segments",
        "sent_at",
        "seq",
        "transmissions",
    )

    def __init__(self, seq: int, end: int, sent_at: float, mss: int) -> None:
        self.seq = seq
        self.end = end
        self.sent_at = sent_at
        self.mss = mss
        self.transmissions = 1
        self.lost = False
        self.sacked = False
        self.segments = 0
        """How many segments were joined into this sacked record."""
        self.older: SentRecord | None = None
        self.newer: SentRecord | None = None

    @property
    def size(self) -> int:
        """Sequence numbers covered."""
        return (self.end - self.seq) & MASK

    def __repr__(self) -> str:
        state = "sacked" if self.sacked else "lost" if self.lost else "in flight"
        return f"<SentRecord {self.seq}..{self.end} {state}, sent {self.transmissions}x>"


class Delivery:
    """What one acknowledgement tells for the first time. `reset` before, read after."""

    __slots__ = (
        "_echo",
        "_min_rtt",
        "_offset",
        "_since",
        "bytes",
        "end",
        "fresh",
        "high",
        "low",
        "now",
        "repeated",
        "sampled_at",
        "sent_at",
    )

    def __init__(self) -> None:
        self.reset(0.0, None, 0, 0.0, 0.0)

    def reset(self, now: float, echo: int | None, ts_offset: int, min_rtt: float, since: float) -> None:
        """`echo` is the TSecr of the acknowledgement, `since` the time that `fresh` counts from."""
        self.now = now
        self._echo = echo
        self._offset = ts_offset
        self._min_rtt = min_rtt
        self._since = since
        self.bytes = 0
        """Newly delivered, in sequence or selectively."""
        self.fresh = 0
        """Of these, what was last sent at `since` or later."""
        self.sent_at = -1.0
        """Of the most recently sent delivered record that RACK may trust (RFC 8985 6.2 step 2); -1: none."""
        self.end = 0
        self.low: int | None = None
        """The smallest end of a delivered record that was sent once."""
        self.high: int | None = None
        self.sampled_at = -1.0
        """When the newest of the records was sent whose transmission is not in doubt; -1: none."""
        self.repeated = False
        """For something among them it is not known which of its transmissions arrived (Karn's rule)."""

    def selective(self) -> None:
        """What follows is sacked: the echo is of the last segment in order and tells nothing about it."""
        self._echo = None

    def note(self, record: SentRecord, end: int) -> None:
        """`record` was delivered up to `end`."""
        size = (end - record.seq) & MASK
        self.bytes += size
        sent_at = record.sent_at
        if sent_at >= self._since:
            self.fresh += size
        if self.high is None or lt(self.high, end):
            self.high = end
        if record.transmissions == 1:
            if self.low is None or lt(end, self.low):
                self.low = end
            if sent_at > self.sampled_at:
                self.sampled_at = sent_at
        elif not self._is_of_last_transmission(record):
            self.repeated = True
            return
        elif self._echo is None:
            self.repeated = True
        elif sent_at > self.sampled_at:
            self.sampled_at = sent_at
        if sent_at > self.sent_at or (sent_at == self.sent_at and lt(self.end, end)):
            self.sent_at = sent_at
            self.end = end

    def _is_of_last_transmission(self, record: SentRecord) -> bool:
        """Whether the last of several transmissions may be the one that arrived."""
        if not record.transmissions or (self.now - record.sent_at) * _ROUNDING < self._min_rtt:
            return False
        sent = (int(record.sent_at * 1000) + self._offset) & MASK
        return self._echo is None or le(sent, self._echo)
