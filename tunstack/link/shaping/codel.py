"""CoDel (RFC 8289): a queue discipline that keeps the time for which packets wait short.

Theory of operation. What counts is how long the packet that leaves has waited. Once that was above `target`
for a whole `interval`, one packet is dropped, and then another whenever interval / sqrt(n) has passed
since the n-th, until a packet leaves that waited less; so the pressure grows slowly until the senders
yield. A packet of a sender that understands it (ECN, RFC 3168) is marked in place of being dropped.
"""

from __future__ import annotations

import math
from typing import Any

from tunstack.errors import DropReason
from tunstack.link.shaping.fifo import Fifo
from tunstack.native.fastpath import lib
from tunstack.native.pipeline import NativePipeline
from tunstack.packet import Packet

TARGET = 0.005
"""Seconds that packets may wait for long (RFC 8289 4.4)."""
INTERVAL = 0.1
"""Seconds: a round trip of the slower flows (RFC 8289 4.3)."""
_FEW_BYTES = 1514
"""A queue of at most one packet of full size is no queue (RFC 8289 4.2)."""
_RECENT = 16
"""Intervals within which the rate of drops of the last time is taken up again (RFC 8289 5.5)."""
_NEVER = math.inf
"""In C, where Python has None."""


class CoDel(Fifo):
    """A `Fifo` that drops, or marks, what has waited too long.

    Attributes:
        marked: packets that were marked.
    """

    __slots__ = (
        "_above_at",
        "_count",
        "_dropping",
        "_ecn",
        "_interval",
        "_last_count",
        "_next_drop",
        "_since",
        "_target",
        "marked",
    )

    def __init__(
        self,
        *,
        packets: int | None = 1000,
        size: int | None = None,
        target: float = TARGET,
        interval: float = INTERVAL,
        ecn: bool = True,
        l2: bool = False,
    ) -> None:
        """`packets` and `size`, each if given, bound what waits. `ecn`: mark the packets of who knows it."""
        super().__init__(packets, size)
        self._ecn = ecn
        self._target = target
        self._interval = interval
        self.l2 = l2
        self._above_at: float | None = None
        self._dropping = False
        self._next_drop = 0.0
        self._since = 0.0
        self._count = 0
        self._last_count = 0
        self.marked = 0

    def pop(self, at: float) -> tuple[float, Packet] | None:
        """The packet that is sent from `at` on, behind the time at which it came; or None."""
        packet, late = self._take(at)
        if self._dropping:
            if not late:
                self._dropping = False
            while packet is not None and self._dropping and at >= self._next_drop:
                self._count += 1
                if (changed := self._mark(packet)) is not None:
                    self._next_drop = self._law(self._next_drop)
                    return self._since, changed
                self.drop(packet, DropReason.SHAPING_QUEUE_FULL)
                packet, late = self._take(at)
                if late:
                    self._next_drop = self._law(self._next_drop)
                else:
                    self._dropping = False
        elif packet is not None and late:
            if (changed := self._mark(packet)) is not None:
                packet = changed
            else:
                self.drop(packet, DropReason.SHAPING_QUEUE_FULL)
                packet, _ = self._take(at)
            self._dropping = True
            since = self._count - self._last_count
            recent = at - self._next_drop < _RECENT * self._interval
            self._count = since if since > 1 and recent else 1
            self._next_drop = self._law(at)
            self._last_count = self._count
        return None if packet is None else (self._since, packet)

    def lend(self, native: NativePipeline) -> None:
        """See `Stage`."""
        c = native.c
        native.set_queue(lib.TS_CODEL, self._packets, self._bytes)
        self.lend_rules(c)
        self.lend_state(c.codel)
        self.lend_packets(native)

    def lend_rules(self, c: Any) -> None:
        """Fill in what does not change, in a `struct ts_pipeline`."""
        c.target = self._target
        c.interval = self._interval
        c.ecn = self._ecn
        c.l2 = self.l2

    def lend_state(self, state: Any) -> None:
        """Fill in a `struct ts_codel`."""
        state.above_at = _NEVER if self._above_at is None else self._above_at
        state.is_dropping = self._dropping
        state.next_drop = self._next_drop
        state.count = self._count
        state.last_count = self._last_count
        state.marked = self.marked

    def restore(self, native: NativePipeline) -> None:
        """See `Stage`."""
        self.restore_state(native.c.codel)
        self.restore_packets(native)

    def restore_state(self, state: Any) -> None:
        """Read a `struct ts_codel`."""
        self._above_at = None if state.above_at == _NEVER else state.above_at
        self._dropping = bool(state.is_dropping)
        self._next_drop = state.next_drop
        self._count = state.count
        self._last_count = state.last_count
        self.marked = state.marked

    def drop_oldest(self) -> None:
        """Drop the packet that has waited longest; there must be one."""
        _, packet = self._waiting.popleft()
        self.size -= len(packet)
        self.drop(packet, DropReason.SHAPING_QUEUE_FULL)

    def _take(self, at: float) -> tuple[Packet | None, bool]:
        """The next packet, and whether packets have waited too long for an interval."""
        if not self._waiting:
            self._above_at = None
            return None, False
        since, packet = self._waiting.popleft()
        self._since = since
        self.size -= len(packet)
        if at - since < self._target or self.size <= _FEW_BYTES:
            self._above_at = None
            return packet, False
        if self._above_at is None:
            self._above_at = at + self._interval
            return packet, False
        return packet, at >= self._above_at

    def _law(self, time: float) -> float:
        return time + self._interval / math.sqrt(self._count)

    def _mark(self, packet: Packet) -> Packet | None:
        changed = mark(packet, l2=self.l2) if self._ecn else None
        if changed is not None:
            self.marked += 1
        return changed


def mark(packet: Packet, *, l2: bool = False) -> Packet | None:
    """`packet` with the mark Congestion Experienced (RFC 3168 5), a copy; None if its sender knows no ECN.

    The checksum of an IPv4 header is corrected (RFC 1624).
    """
    data = packet.tobytes()
    start = 14 if l2 else 0
    version = data[start] >> 4 if len(data) >= start + 20 else 0
    if version == 4 and data[start + 1] & 3:
        copy = bytearray(data)
        copy[start + 1] |= 3
        length = (data[start] & 15) * 4
        copy[start + 10 : start + 12] = bytes(2)
        total = int.from_bytes(copy[start : start + length], "big")
        copy[start + 10 : start + 12] = (-total % 0xFFFF).to_bytes(2, "big")
        return Packet(bytes(copy))
    if version == 6 and data[start + 1] & 0x30:
        copy = bytearray(data)
        copy[start + 1] |= 0x30
        return Packet(bytes(copy))
    return None
