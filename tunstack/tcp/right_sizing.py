"""How much a connection may hold for its reader: the size of its receive buffer follows the reader.

Theory of operation (dynamic right-sizing: Fisk and Feng, 2001). A window of W bytes carries at most W in a
round trip, so a reader that takes R bytes in a round trip needs a window of R, and of 2 R so that its sender
may repair a loss meanwhile, or double its rate. Time is cut into rounds of a round trip, but not less than
`ROUND`. At the end of each the size, `initial` at first, becomes twice what the *reader* took in a round trip
at the round's rate, and up to twice that while the rate is rising as in slow start, since the peer will have
doubled it twice when it learns. It becomes never less by that, and at most twice what it was. So

- a reader that is slow, or does not read at all, has the size it began with, however fast its peer sends, and
  the peer's window closes soon;
- the size grows no faster than the window of slow start does, and a burst that is over within `ROUND` grows
  nothing: on a fast link with many connections only those that stay busy get more;
- on a link without delay the round trip counts as `SHORTEST`, since windows grow queues there, not rates.

A size that is not wanted any more is given up: while the reader is behind by half of it, and needs less than
half, it is halved every `PATIENCE` seconds. An idle connection keeps its size, which is a number, and owns no
page. When memory for all is short, that is when a connection's size is more than the `SHARE` of what is left,
its size becomes that share, but not less than `initial`. The window that is advertised next is smaller by
that, and `Receiver.advance_window` sees to it that no edge moves left (SHLD-14).

The round trip is what a timestamp's echo took, else what the sender measured (the handshake at least), else
the time for a window's worth of bytes, which is not less; of those the smallest of `MEMORY` seconds, so that
a queue which the window itself has built does not call for a larger one.

Bounds: `limits.receive_buffer`; `limits.receive_memory` for all together; without window scaling 64 KiB or
`initial`.
"""

from __future__ import annotations

from tunstack.limits import Limits
from tunstack.tcp.hot import NEVER, HotState
from tunstack.tcp.receive import ReceiveAccount

ROUND = 0.01
"""Seconds; the shortest time over which a rate is a rate. At 1 Gbit/s 1.25 MB pass in it."""
SHORTEST = 0.001
"""Seconds; a timestamp cannot tell shorter round trips. A size of 2.5 MB carries 10 Gbit/s by it."""
LONGEST = 1.0
"""Seconds; whatever a peer echoes, no more counts."""
MEMORY = 10.0
"""Seconds for which a small round trip is remembered."""
PATIENCE = 1.0
"""Seconds for which a reader must be behind before its buffer is halved."""
SHARE = 3
"""As a shift: an eighth of the memory that is left. 32 readers that have stopped leave a fifth of it."""


class RightSizing:
    """Keeps `hot.rcv_buf` of one connection; `look` is for the end of a round, `relieve` for shortage."""

    __slots__ = (
        "_account",
        "_behind_since",
        "_consumed",
        "_hot",
        "_rate",
        "_received",
        "_rtt_at",
        "_start",
        "due",
        "initial",
        "limit",
        "rtt",
    )

    def __init__(self, hot: HotState, account: ReceiveAccount, limits: Limits) -> None:
        self._hot = hot
        self._account = account
        self.limit = limits.receive_buffer
        self.initial = min(limits.receive_buffer, limits.receive_buffer_initial)
        hot.rcv_buf = self.initial
        self.due = 0.0
        """When the round ends (seconds): `look` then."""
        self.rtt = NEVER
        """The smallest round trip of late, in seconds; `NEVER`: none is known."""
        self._rtt_at = 0.0
        self._start = NEVER
        self._received = 0
        self._consumed = 0
        self._rate = 0.0
        """Bytes per second that the reader took in the last round."""
        self._behind_since = NEVER

    def look(self, now: float, queued: int, sample: float | None) -> None:
        """A round is over: size the buffer, and begin the next round.

        `queued`: bytes in order that the reader has not taken; `sample`: a round trip that was measured.
        """
        hot = self._hot
        received = hot.bytes_in
        consumed = received - queued
        elapsed = now - self._start
        if elapsed > 0:
            if arrived := received - self._received:
                # Only what answers our ACKs tells the time: not a probe of the closed window.
                self._sample(elapsed * hot.rcv_buf / arrived if sample is None else sample, now)
            rate = (consumed - self._consumed) / elapsed
            rising = max(0.0, min(rate - self._rate, rate / 2))
            self._rate = rate
            known = 0.0 if self.rtt == NEVER else max(SHORTEST, self.rtt)
            needed = int(2 * (rate + 2 * rising) * known)
            if needed > hot.rcv_buf:
                self._grow(needed)
            self._watch(needed, queued, now)
        self._start = now
        self._received = received
        self._consumed = consumed
        self.due = now + (max(ROUND, self.rtt) if self.rtt != NEVER else ROUND)

    def resume(
        self, start: float, received: int, consumed: int, rate: float, rtt: float, rtt_at: float, due: float
    ) -> None:
        """Go on where an accelerator has left off: in a round from `start` to `due`."""
        self._start = start
        self._received = received
        self._consumed = consumed
        self._rate = rate
        self.rtt = rtt
        self._rtt_at = rtt_at
        self.due = due

    def fix(self, size: int) -> None:
        """The user wants `size` bytes, no more and no less, whatever the reader does."""
        self.limit = self.initial = self._hot.rcv_buf = size

    def relieve(self) -> None:
        """Memory is short: give up what is more than the share of this connection."""
        self._hot.rcv_buf = max(self.initial, self._account.free >> SHARE)

    def _sample(self, rtt: float, now: float) -> None:
        rtt = min(rtt, LONGEST)
        if rtt <= self.rtt or now - self._rtt_at >= MEMORY:
            self.rtt = rtt
            self._rtt_at = now

    def _grow(self, needed: int) -> None:
        hot = self._hot
        most = min(self.limit, max(self.initial, 0xFFFF << hot.rcv_shift), self._account.free >> SHARE)
        hot.rcv_buf = max(hot.rcv_buf, min(needed, 2 * hot.rcv_buf, most))

    def _watch(self, needed: int, queued: int, now: float) -> None:
        """Give up what a reader that has become slow does not need."""
        hot = self._hot
        half = hot.rcv_buf >> 1
        if hot.rcv_buf == self.initial or queued < half or needed >= half:
            self._behind_since = NEVER
        elif self._behind_since == NEVER:
            self._behind_since = now
        elif now - self._behind_since >= PATIENCE:
            # While the window is closed little makes anybody look.
            periods = int(min(32.0, (now - self._behind_since) / PATIENCE))
            self._behind_since = now
            hot.rcv_buf = max(self.initial, hot.rcv_buf >> periods)
