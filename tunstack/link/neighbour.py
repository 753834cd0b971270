"""The neighbour cache: which MAC an address on the link has. The same for ARP and NDP.

Theory of operation. The cache knows no messages. It says whom to ask (`poll_solicitations`) and is told
what was heard (`update`); the link turns the one into ARP or NDP and the other out of it. States follow
RFC 4861 section 7.3.2, without DELAY, because no layer above gives hints of reachability:

    INCOMPLETE  asked by broadcast, no answer yet; packets wait in a bounded queue
    REACHABLE   an answer to a question of ours came in the last REACHABLE_TIME
    STALE       known, but old or never confirmed; used as soon as somebody sends
    PROBE       in use and being asked by unicast (RFC 1122 2.3.2.1, unicast poll)

Transitions: INCOMPLETE becomes REACHABLE by an answer, PROBE by anything else that tells the MAC, and
fails after MAX_SOLICITATIONS. REACHABLE becomes STALE in time. STALE becomes PROBE when a packet is sent,
and is forgotten after STALE_TIME. PROBE becomes REACHABLE by an answer, and is forgotten after
MAX_SOLICITATIONS, so that the next packet asks everybody.

A MAC that differs from that of an entry in use is only a claim: the old MAC is asked, and if it is silent
for one RETRANS_TIMER the claim is believed and probed in its turn. So a neighbour that is there cannot be
displaced by somebody else's gratuitous messages, and one that has moved is found again after a second.

Bounds: `limits.neighbours` entries. When all are taken the oldest STALE entry makes room, never one in use
or being resolved; without a STALE one the newcomer is refused and counted. At most half of the entries are
INCOMPLETE, so packets to addresses that nobody has cannot fill the table. Entries that are created by what a
guest sends are STALE, so a flood of them displaces only its own kind. Questions about one address are never
less than RETRANS_TIMER apart (RFC 1122 2.3.2.1: one per second and destination).
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tunstack.errors import DropCounters, DropReason
from tunstack.limits import Limits
from tunstack.packet import Packet
from tunstack.timers import TimerHeap

REACHABLE_TIME = 30.0
"""Seconds that an answer is good for (RFC 4861 section 10)."""
RETRANS_TIMER = 1.0
"""Seconds between two questions about one address (RFC 4861 section 10, RFC 1122 2.3.2.1)."""
MAX_SOLICITATIONS = 3
"""Questions without an answer before giving up, broadcast and unicast alike (RFC 4861 section 10)."""
STALE_TIME = 60.0
"""Seconds that an entry nobody uses is kept (RFC 1122 2.3.2.1: on the order of a minute)."""


class NeighbourState(enum.IntEnum):
    """See the theory of operation."""

    INCOMPLETE = 0
    REACHABLE = 1
    STALE = 2
    PROBE = 3


class Solicitation(NamedTuple):
    """Ask who has `address`: by unicast to `mac`, or everybody if it is None."""

    address: bytes
    mac: bytes | None


class _Neighbour:
    __slots__ = ("address", "attempts", "claim", "mac", "queue", "solicited_at", "state")

    def __init__(self, address: bytes, state: NeighbourState, mac: bytes | None) -> None:
        self.address = address
        self.state = state
        self.mac = mac
        self.claim: bytes | None = None
        self.attempts = 0
        self.solicited_at = float("-inf")
        self.queue: deque[Packet] = deque()


class NeighbourCache:
    """Addresses (4 or 16 bytes) to link headers.

    Attributes:
        headers: the link header for each address that may be used without asking; the fast path looks here
            and calls `resolve` only for what it does not find.
    """

    __slots__ = (
        "_drops",
        "_entries",
        "_failures",
        "_incomplete",
        "_limits",
        "_make_header",
        "_queued",
        "_solicitations",
        "_stale",
        "_timers",
        "changes",
        "headers",
    )

    def __init__(
        self, limits: Limits, drops: DropCounters, make_header: Callable[[bytes, bytes], bytes]
    ) -> None:
        """`make_header(address, mac)` gives the bytes to be prepended to a packet."""
        self.headers: dict[bytes, bytes] = {}
        self.changes = 0
        """How often `headers` has changed."""
        self._limits = limits
        self._drops = drops
        self._make_header = make_header
        self._entries: dict[bytes, _Neighbour] = {}
        self._stale: dict[bytes, None] = {}  # oldest first
        self._incomplete = 0
        self._queued = 0
        self._timers: TimerHeap[bytes] = TimerHeap()
        self._solicitations: list[Solicitation] = []
        self._failures: deque[Packet] = deque(maxlen=limits.neighbour_queue_total)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def queued(self) -> int:
        """Packets that wait for an answer."""
        return self._queued

    def state(self, address: bytes) -> NeighbourState | None:
        """The state of `address`, None if it is not in the cache."""
        entry = self._entries.get(address)
        return None if entry is None else entry.state

    def mac(self, address: bytes) -> bytes | None:
        """The MAC of `address` as far as it is known, in whatever state."""
        entry = self._entries.get(address)
        return None if entry is None else entry.mac

    def resolve(self, packet: Packet, address: bytes, now: float) -> bytes | None:
        """The link header to send `packet` with now, or None: it waits, or was dropped and counted.

        A packet that waits is detached from its buffers.
        """
        entry = self._entries.get(address)
        if entry is None:
            half = max(1, self._limits.neighbours // 2)
            if self._incomplete >= half:
                self._drops.add(DropReason.NEIGHBOUR_TABLE_FULL)
                return None
            if not self._make_room():
                return None
            entry = self._entries[address] = _Neighbour(address, NeighbourState.INCOMPLETE, None)
            self._incomplete += 1
            self._solicit(entry, now)
        if entry.state is NeighbourState.INCOMPLETE:
            self._enqueue(entry, packet)
            return None
        if entry.state is NeighbourState.STALE:
            self._enter_probe(entry, now)
        return self.headers[address]

    def use(self, address: bytes, now: float) -> bytes | None:
        """The link header towards `address`, if it is known: `resolve` for somebody who sends by himself."""
        entry = self._entries.get(address)
        if entry is None or entry.state is NeighbourState.INCOMPLETE:
            return None
        if entry.state is NeighbourState.STALE:
            self._enter_probe(entry, now)
        return self.headers[address]

    def update(
        self, address: bytes, mac: bytes, now: float, *, solicited: bool, create: bool
    ) -> Sequence[Packet]:
        """`address` was heard to be at `mac`; returns the packets that waited for it, to be sent now.

        Their header is then in `headers`. `solicited`: the message answers a question, if we asked one.
        `create`: the message was meant for us, so it makes an entry if there is none (RFC 826).
        """
        entry = self._entries.get(address)
        if entry is None:
            if create and self._make_room():
                entry = self._entries[address] = _Neighbour(address, NeighbourState.STALE, mac)
                self._enter_stale(entry, now)
            return ()
        if entry.state is NeighbourState.INCOMPLETE:
            return self._resolved(entry, mac, now, solicited)
        if entry.state is NeighbourState.STALE:
            entry.mac = mac
            self._stale.pop(address)
            self._enter_stale(entry, now)
        elif entry.mac == mac:
            if solicited and entry.state is NeighbourState.PROBE:
                self._enter_reachable(entry, now)
        else:
            entry.claim = mac
            if entry.state is NeighbourState.REACHABLE:
                self._enter_probe(entry, now)
        return ()

    def poll_solicitations(self) -> list[Solicitation]:
        """What to ask now, in order; clears."""
        wanted, self._solicitations = self._solicitations, []
        return wanted

    def poll_failures(self) -> list[Packet]:
        """The packets whose neighbour did not answer, already counted; clears."""
        failures = list(self._failures)
        self._failures.clear()
        return failures

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called, None if nothing is in the cache."""
        return self._timers.next_deadline()

    def handle_timeout(self, now: float) -> None:
        """Age, ask again, give up."""
        for address in self._timers.expired(now):
            entry = self._entries[address]
            if entry.state is NeighbourState.REACHABLE:
                self.headers.pop(address)
                self.changes += 1
                self._enter_stale(entry, now)
            elif entry.state is NeighbourState.STALE:
                self._forget(entry)
            elif entry.state is NeighbourState.PROBE and entry.claim is not None and entry.attempts:
                entry.mac, entry.claim, entry.attempts = entry.claim, None, 0
                self.headers[address] = self._make_header(address, entry.mac)
                self.changes += 1
                self._solicit(entry, now)
            elif entry.attempts < MAX_SOLICITATIONS:
                self._solicit(entry, now)
            else:
                self._forget(entry)

    def _make_room(self) -> bool:
        if len(self._entries) < self._limits.neighbours:
            return True
        for address in self._stale:
            self._timers.cancel(address)
            self._forget(self._entries[address])
            return True
        self._drops.add(DropReason.NEIGHBOUR_TABLE_FULL)
        return False

    def _enqueue(self, entry: _Neighbour, packet: Packet) -> None:
        queue = entry.queue
        if self._queued >= self._limits.neighbour_queue_total and not queue:
            self._drops.add(DropReason.NEIGHBOUR_QUEUE_FULL)
            return
        if len(queue) >= self._limits.neighbour_queue or self._queued >= self._limits.neighbour_queue_total:
            # The newest replaces the oldest (RFC 4861 section 7.2.2, RFC 1122 2.3.2.2).
            queue.popleft()
            self._queued -= 1
            self._drops.add(DropReason.NEIGHBOUR_QUEUE_FULL)
        packet.detach()
        queue.append(packet)
        self._queued += 1

    def _resolved(self, entry: _Neighbour, mac: bytes, now: float, solicited: bool) -> Sequence[Packet]:
        entry.mac = mac
        self._incomplete -= 1
        if solicited:
            self._enter_reachable(entry, now)
        else:
            self._enter_probe(entry, now)
        waiting, entry.queue = entry.queue, deque()
        self._queued -= len(waiting)
        return waiting

    def _enter_reachable(self, entry: _Neighbour, now: float) -> None:
        assert entry.mac is not None
        entry.state = NeighbourState.REACHABLE
        entry.claim = None
        self.headers[entry.address] = self._make_header(entry.address, entry.mac)
        self.changes += 1
        self._timers.set(entry.address, now + REACHABLE_TIME)

    def _enter_stale(self, entry: _Neighbour, now: float) -> None:
        entry.state = NeighbourState.STALE
        self._stale[entry.address] = None
        self._timers.set(entry.address, now + STALE_TIME)

    def _enter_probe(self, entry: _Neighbour, now: float) -> None:
        assert entry.mac is not None
        entry.state = NeighbourState.PROBE
        entry.attempts = 0
        self._stale.pop(entry.address, None)
        self.headers[entry.address] = self._make_header(entry.address, entry.mac)
        self.changes += 1
        if now - entry.solicited_at >= RETRANS_TIMER:
            self._solicit(entry, now)
        else:
            self._timers.set(entry.address, entry.solicited_at + RETRANS_TIMER)

    def _solicit(self, entry: _Neighbour, now: float) -> None:
        entry.attempts += 1
        entry.solicited_at = now
        self._timers.set(entry.address, now + RETRANS_TIMER)
        self._solicitations.append(Solicitation(entry.address, entry.mac))

    def _forget(self, entry: _Neighbour) -> None:
        """Remove an entry whose timer is not armed any more."""
        del self._entries[entry.address]
        self.headers.pop(entry.address, None)
        self.changes += 1
        self._stale.pop(entry.address, None)
        if entry.state is NeighbourState.INCOMPLETE:
            self._incomplete -= 1
            self._queued -= len(entry.queue)
            if entry.queue:
                self._drops.add(DropReason.NEIGHBOUR_UNREACHABLE, len(entry.queue))
            self._failures.extend(entry.queue)
