"""The receiving half of a connection: the window, the order of bytes, and when to acknowledge.

Theory of operation. The window's right edge (`rcv_adv`) never moves left (SHLD-14) and moves right only in
steps worth having (SWS avoidance, MUST-39). An ACK is owed at once for anything out of order, for a gap that
fills, for what lies outside the window and for a FIN; otherwise for every second full segment (SHLD-19),
where a super-segment counts as all of its segments, or after `DELAYED_ACK` seconds (MUST-40). It is sent once
for a batch (MUST-58, MUST-59), or rides on data; but each out-of-order segment gets a duplicate ACK of its
own (RFC 5681 4.2), since a sender without SACK counts them. With SACK, what is missing and what came twice is
told by `sack.SackWriter`, duplicates with an ACK for each. How large the window may be, `hot.rcv_buf`, is the
concern of `right_sizing.py`.
"""

from __future__ import annotations

from tunstack.errors import DropReason
from tunstack.limits import Limits
from tunstack.tcp.hot import NEVER, HotState
from tunstack.tcp.pages import PagePool
from tunstack.tcp.receive import OutOfOrder, ReceiveAccount, ReceiveQueue
from tunstack.tcp.right_sizing import SHARE, RightSizing
from tunstack.tcp.sack import Block, SackWriter, to_sequence
from tunstack.tcp.seq import MASK, diff, lt

DELAYED_ACK = 0.04
"""Seconds; RFC 9293 MUST-40 allows less than 0.5, Linux takes 0.04 at the least."""
MAX_DUPLICATES = 32
"""Duplicate ACKs sent for one batch at the most; a sender needs three."""


class Receiver:
    """Receive queue, reassembly and acknowledgement state of one connection."""

    __slots__ = (
        "_account",
        "ack_now",
        "duplicates_owed",
        "fin_position",
        "fin_received",
        "hot",
        "mss",
        "ooo",
        "position",
        "queue",
        "sacks",
        "sizing",
    )

    def __init__(self, hot: HotState, account: ReceiveAccount, pool: PagePool, limits: Limits) -> None:
        self.hot = hot
        self._account = account
        self.sizing = RightSizing(hot, account, limits)
        self.queue = ReceiveQueue(account, pool)
        self.ooo = OutOfOrder(account, limits.reassembly_blocks)
        self.sacks = SackWriter()
        self.position = 0
        """Stream position of `rcv_nxt`; a plain integer."""
        self.fin_position: int | None = None
        """Stream position of the peer's FIN, once known."""
        self.fin_received = False
        self.mss = 536
        """The largest segment seen, to tell full ones."""
        self.ack_now = False
        self.duplicates_owed = 0
        """Out-of-order segments since `rcv_nxt` last moved: each is answered by an ACK of its own."""

    @property
    def window(self) -> int:
        """Bytes from `rcv_nxt` to the advertised right edge."""
        return max(0, diff(self.hot.rcv_adv, self.hot.rcv_nxt))

    def take(self, seq: int, payload: memoryview, fin: bool, segments: int) -> DropReason | None:
        """Take an acceptable segment: `seq` is the number of `payload`'s first byte.

        Returns why bytes were not kept, if some new ones were not.
        """
        hot = self.hot
        ahead = diff(seq, hot.rcv_nxt)
        size = len(payload)
        if fin and self.fin_position is None:
            fin_ahead = ahead + size
            if 0 <= fin_ahead <= self.window:
                self.fin_position = self.position + fin_ahead
        if ahead < 0:
            self.came_twice(seq, size)
            if -ahead >= size:
                self.ack_now = True
                return self._check_fin() or (DropReason.TCP_DUPLICATE if size else None)
            payload = payload[-ahead:]
            size += ahead
            ahead = 0
            self.ack_now = True
        room = self.window - ahead
        if size > room:
            payload = payload[: max(0, room)]
            size = len(payload)
            self.ack_now = True
            if not size:
                return DropReason.TCP_OUTSIDE_WINDOW
        if self.fin_position is not None and self.position + ahead + size > self.fin_position:
            # Bytes behind the peer's own FIN do not exist.
            payload = payload[: max(0, self.fin_position - self.position - ahead)]
            size = len(payload)
        if not size:
            if fin and ahead:
                self.ack_now = True
            return self._check_fin()
        if self._account.free < size:
            self.ack_now = True
            return DropReason.TCP_RECEIVE_MEMORY
        if hot.sack and len(self.ooo):
            start = self.position + ahead
            twice = self.ooo.overlap(start, start + size)
            if twice is not None:
                self.sacks.duplicate(*twice)
                self.ack_now = True
        if ahead:
            return self._keep(self.position + ahead, payload, segments)
        wire = size // segments
        if wire > self.mss:
            self.mss = wire
        self._advance(payload)
        if len(self.ooo):
            self.ack_now = True
            while (block := self.ooo.take(self.position)) is not None:
                self._advance(memoryview(block))
        hot.ack_pending += size
        return self._check_fin()

    def _keep(self, start: int, payload: memoryview, segments: int) -> DropReason | None:
        """Keep what came out of order."""
        self.ack_now = True
        self.duplicates_owed = min(MAX_DUPLICATES, self.duplicates_owed + segments)
        kept = self.ooo.insert(start, payload)
        if self.hot.sack:
            self.sacks.arrived(start, self.ooo)
        return None if kept else DropReason.TCP_REASSEMBLY_FULL

    def came_twice(self, seq: int, size: int) -> None:
        """Of a segment of `size` bytes at `seq`, what lies before `rcv_nxt` is a duplicate."""
        hot = self.hot
        if hot.sack and size and lt(seq, hot.rcv_nxt):
            start = self.position + diff(seq, self._data_edge)
            self.sacks.duplicate(start, min(start + size, self.position))

    @property
    def _data_edge(self) -> int:
        """The sequence number of `position`: `rcv_nxt` less the peer's FIN."""
        return (self.hot.rcv_nxt - self.fin_received) & MASK

    def _advance(self, payload: memoryview) -> None:
        size = len(payload)
        self.duplicates_owed = 0
        self.queue.append(payload)
        self.position += size
        self.hot.rcv_nxt = (self.hot.rcv_nxt + size) & MASK
        self.hot.bytes_in += size

    def _check_fin(self) -> DropReason | None:
        """Pass the FIN once everything before it is there."""
        if self.fin_position == self.position and not self.fin_received:
            self.fin_received = True
            self.hot.rcv_nxt = (self.hot.rcv_nxt + 1) & MASK
            self.ack_now = True
        return None

    def _room(self) -> int:
        """Bytes that the window should be now, were it free to move."""
        hot = self.hot
        shared = self._account.free
        if hot.rcv_buf > shared >> SHARE and hot.rcv_buf > self.sizing.initial:
            self.sizing.relieve()
        room = min(hot.rcv_buf - self.queue.size, 0xFFFF << hot.rcv_shift)
        if room > shared:
            # Near the common limit a connection may still have one segment in flight.
            room = max(shared >> 3, min(room, self.mss))
        return room

    def advance_window(self) -> int:
        """Open the window as far as is worth while; returns the bytes to advertise."""
        hot = self.hot
        room = self._room()
        window = max(0, diff(hot.rcv_adv, hot.rcv_nxt))
        gain = room - window
        if gain >= min(self.mss, hot.rcv_buf >> 1):
            hot.rcv_adv = (hot.rcv_nxt + room) & MASK
            return room
        return window

    def update_due(self) -> bool:
        """The reader made so much room that the peer should hear of it now; behind its FIN nothing comes."""
        if self.fin_received:
            return False
        hot = self.hot
        window = self.window
        gain = self._room() - window
        if gain < min(self.mss, hot.rcv_buf >> 1):
            return False  # `advance_window` would not move
        most = min(hot.rcv_buf, 0xFFFF << hot.rcv_shift)
        return gain >= most >> 2 or window < 2 * self.mss <= gain or not window

    def ack_due(self, now: float) -> bool:
        """An ACK is owed now; arms the delayed-ACK timer when one is owed later."""
        hot = self.hot
        if self.ack_now or hot.ack_pending >= 2 * self.mss:
            return True
        if hot.ack_pending and hot.ack_deadline == NEVER:
            hot.ack_deadline = now + DELAYED_ACK
        return False

    @property
    def has_sacks(self) -> bool:
        """An ACK that goes out now has something to say by SACK."""
        if not self.hot.sack:
            return False
        return len(self.ooo) != 0 or self.sacks.duplicates != 0 or self._fin_waits

    @property
    def _fin_waits(self) -> bool:
        """The FIN is there, and something before it is not."""
        return self.fin_position is not None and not self.fin_received

    def sack_blocks(self, skip: int) -> list[Block]:
        """What the next ACK reports, in sequence numbers; `skip` as for `SackWriter.blocks`."""
        if not self.has_sacks:
            return []
        limit = 3 if self.hot.timestamps else 4
        blocks = self.sacks.blocks(self.ooo, limit, skip)
        fin = self.fin_position
        if fin is not None and self._fin_waits:
            # The FIN has a sequence number as well.
            blocks = [(start, end + (end == fin)) for start, end in blocks]
            if len(blocks) < limit and not any(end > fin for _, end in blocks):
                blocks.append((fin, fin + 1))
        return to_sequence(blocks, self.position, self._data_edge)

    def ack_sent(self) -> None:
        """Some segment carried the current `rcv_nxt` to the peer."""
        hot = self.hot
        hot.ack_pending = 0
        hot.ack_deadline = NEVER
        hot.last_ack_sent = hot.rcv_nxt
        self.ack_now = False
        self.duplicates_owed = 0

    def clear(self) -> None:
        """Free everything."""
        self.queue.clear()
        self.ooo.clear()
        self.sacks.clear()
