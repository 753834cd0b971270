"""An episode of loss recovery: how much may be sent in it, and whether it was needed at all.

Theory of operation. An episode begins when something is found lost (FAST) or the RTO expires (TIMEOUT) and
ends when everything that was outstanding then, up to `recover`, is acknowledged. Congestion control is told
once at its beginning, so a window of data costs one reduction, however many segments of it are lost.

In FAST the sending rate follows deliveries, by Proportional Rate Reduction (RFC 6937 and its successor):
while more than `ssthresh` is in the network, `ssthresh / recover_fs` bytes leave for each byte delivered;
below that, as many as are delivered (conservative reduction bound), and a segment more while there is
progress and no further loss (slow-start reduction bound).

The evidence that an episode was spurious is collected until the next one:

- Eifel (RFC 3522): the first acknowledgement that covers what was first sent again echoes a timestamp older
  than the retransmission's: the original had arrived.
- DSACK (RFC 3708): every range that was sent again was reported as a duplicate. At most `MAX_RANGES` are
  remembered; if there are more, the episode is deemed to have been needed.
"""

from __future__ import annotations

import enum

from tunstack.tcp.seq import le, lt

MAX_RANGES = 64


class Recovery(enum.Enum):
    """Whether a loss is being repaired, and how it was found."""

    NONE = "none"
    FAST = "fast"
    TIMEOUT = "timeout"


class Episode:
    """The current episode, or the last one."""

    __slots__ = (
        "_first_seq",
        "_first_stamp",
        "_out",
        "_ranges",
        "_received",
        "_recover_fs",
        "began_at",
        "is_proportional",
        "kind",
        "recover",
    )

    def __init__(self, recover: int) -> None:
        self.kind = Recovery.NONE
        self.recover = recover
        """RFC 6582, RFC 6675: `snd_nxt` when the episode began."""
        self.began_at = 0.0
        self.is_proportional = False
        """PRR governs (FAST with SACK)."""
        self._received = 0
        self._out = 0
        self._recover_fs = 1
        self._first_seq: int | None = None
        self._first_stamp: int | None = None
        self._ranges: list[tuple[int, int]] | None = None

    def begin(self, kind: Recovery, recover: int, now: float) -> None:
        """A new episode, or an RTO within one."""
        again = kind is Recovery.TIMEOUT and self.kind is Recovery.TIMEOUT
        self.kind = kind
        self.recover = recover
        self.began_at = now
        self.is_proportional = False
        if not again:
            self.forget()
            self._ranges = []

    def forget(self) -> None:
        """Nothing can show any more that this episode was spurious."""
        self._first_seq = self._first_stamp = self._ranges = None

    @property
    def awaits_echo(self) -> bool:
        """The next acknowledgement may show that the episode was spurious."""
        return self._first_seq is not None

    # proportional rate reduction

    def begin_reduction(self, recover_fs: int) -> None:
        """`recover_fs`: bytes in flight or newly delivered when the loss was found."""
        self.is_proportional = True
        self._recover_fs = max(1, recover_fs)
        self._received = 0
        self._out = 0

    def reduce(self, delivered: int, pipe: int, ssthresh: int, mss: int, safe: bool) -> int:
        """How many bytes may be sent now that `delivered` more have arrived (RFC 6937 section 3).

        `safe`: `snd_una` advanced, and nothing else was found lost.
        """
        self._received += delivered
        if pipe > ssthresh:
            allowance = -(-self._received * ssthresh // self._recover_fs) - self._out
        else:
            allowance = max(self._received - self._out, delivered)
            if safe:
                allowance += mss
            allowance = min(ssthresh - pipe, allowance)
        if not self._out:
            return max(allowance, mss)
        return max(allowance, 0)

    def sent(self, size: int) -> None:
        """`size` bytes went out, old or new."""
        self._out += size

    # evidence

    def resent(self, seq: int, end: int, stamp: int | None) -> None:
        """[seq, end) went out again, with this TSval."""
        if self._first_seq is None and self._first_stamp is None:
            self._first_seq = seq
            self._first_stamp = stamp
        ranges = self._ranges
        if ranges is None:
            return
        if ranges and ranges[-1][1] == seq:
            ranges[-1] = (ranges[-1][0], end)
        elif len(ranges) < MAX_RANGES:
            ranges.append((seq, end))
        else:
            self._ranges = None

    def is_late_original(self, ack: int, echo: int | None) -> bool:
        """Whether a new acknowledgement with this TSecr proves the first retransmission needless."""
        first, stamp = self._first_seq, self._first_stamp
        if first is None or le(ack, first):
            return False
        self._first_seq = None
        if stamp is None or echo is None:
            return False
        return lt(echo, stamp)

    def duplicate_reported(self, start: int, end: int) -> bool:
        """A DSACK came; True if with it everything that was sent again is known to be a duplicate."""
        ranges = self._ranges
        if not ranges:
            return False
        left: list[tuple[int, int]] = []
        for seq, stop in ranges:
            if le(stop, start) or le(end, seq) or start == end:
                left.append((seq, stop))
                continue
            if lt(seq, start):
                left.append((seq, start))
            if lt(end, stop):
                left.append((end, stop))
            # One report speaks of one copy.
            start = stop if lt(stop, end) else end
        if len(left) > MAX_RANGES:
            self._ranges = None
            return False
        self._ranges = left
        return not left
