"""Reassembly of fragmented datagrams (RFC 791 3.2, RFC 815, RFC 1122 3.3.2, RFC 5722), for both families.

Theory of operation. A datagram is known by (source, destination, protocol, identification), in IPv6 without
the protocol, which is what the first fragment says (RFC 8200 4.5). Its fragments are copied and kept in order
of their offsets; it is complete when the last one (no more fragments) is there and the bytes held are as many
as its end says. They may come in any order.

Trust. A fragment that shares a byte with another one is an attack or a reused identification: the whole
datagram is given up (FRAGMENT_OVERLAP), and what else comes of it until its timer runs out. The exact
duplicate, equal in place, flag and bytes, is what a network may do, and only the copy is dropped
(FRAGMENT_DUPLICATE). A datagram whose fragments disagree about where it ends (BAD_FRAGMENT) is given up in
the same way, and so is one cut into more pieces than the limit (FRAGMENT_MEMORY). A fragment that is
wrong by itself, empty, not a multiple of 8 bytes or beyond 65535, is dropped alone (BAD_FRAGMENT).

Congestion marks (RFC 3168 5.3): a mark on one fragment is a mark on the datagram; one that has marked
fragments and others whose sender knows nothing of ECN is not believed and dropped (BAD_FRAGMENT).

Timer. One per datagram, `reassembly_timeout` from its first fragment, never prolonged. All last equally
long, so the table's order of arrival is the order of expiry. A datagram that expires leaves a quote of
its fragment 0, if that came: what ICMP Time Exceeded, code 1, must carry.

Bounds: `reassembly_bytes` over all, with a fixed charge for the bookkeeping of each datagram
and fragment, `reassembly_datagrams`, `reassembly_fragments` of one datagram. Where room is
needed the oldest datagram goes (FRAGMENT_MEMORY). Each fragment handed in is either held, part of a delivered
datagram, or counted as dropped, exactly once.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left

from tunstack.errors import DropCounters, DropReason
from tunstack.ip.header import QUOTE_BYTES, IpHeader
from tunstack.limits import Limits

MAX_DATAGRAM = 65535
"""Bytes of the longest payload that any family can carry."""

FRAGMENT_CHARGE = 96
"""Bytes of bookkeeping of a fragment: its bytes object, an integer, two list slots."""
DATAGRAM_CHARGE = 1024
"""Bytes of bookkeeping of a datagram: key, two lists, first header of at most 60 bytes, table slots."""

Key = tuple[bytes, bytes, int, int]

_NOT_ECT = 0
_CE = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Reassembled:
    """A complete datagram: the IP header of its fragment 0 as it came, the payload in order."""

    first_header: bytes
    pieces: list[bytes]
    congestion_experienced: bool


class _Datagram:
    """One datagram under way. `given_up` is why it will never be complete, with nothing held."""

    __slots__ = ("charge", "deadline", "ecn", "end", "first_header", "given_up", "held", "pieces", "starts")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.starts: list[int] = []
        self.pieces: list[bytes] = []
        self.first_header: bytes | None = None
        self.end = -1
        self.held = 0
        self.charge = DATAGRAM_CHARGE
        self.ecn = 0
        self.given_up: DropReason | None = None


class Reassembler:
    """All datagrams under reassembly of one attached network."""

    __slots__ = ("_bytes", "_datagrams", "_drops", "_limits", "_quotes")

    def __init__(self, limits: Limits, drops: DropCounters) -> None:
        self._limits = limits
        self._drops = drops
        self._datagrams: dict[Key, _Datagram] = {}
        self._bytes = 0
        self._quotes: list[bytes] = []

    def __len__(self) -> int:
        return len(self._datagrams)

    @property
    def held_bytes(self) -> int:
        """What is charged against `reassembly_bytes` now."""
        return self._bytes

    @property
    def held_fragments(self) -> int:
        """How many fragments wait for others."""
        return sum(len(datagram.starts) for datagram in self._datagrams.values())

    def add(self, header: IpHeader, now: float) -> Reassembled | None:
        """Take in one fragment; the datagram, if that completes it."""
        self.handle_timeout(now)
        size = len(header.payload)
        start = header.fragment_offset
        more = header.more_fragments
        if size == 0 or (more and size & 7) or start + size > MAX_DATAGRAM:
            self._drops.add(DropReason.BAD_FRAGMENT)
            return None
        protocol = header.protocol if header.version == 4 else 0
        key = (header.src, header.dst, protocol, header.ident)
        datagram = self._datagrams.get(key)
        if datagram is not None:
            if datagram.given_up is not None:
                self._drops.add(datagram.given_up)
                return None
            reason = self._objection(datagram, start, header.payload, more)
            if reason is DropReason.FRAGMENT_DUPLICATE:
                self._drops.add(reason)
                return None
            if reason is not None:
                self._give_up(datagram, reason)
                self._drops.add(reason)
                return None
        datagram = self._admit(key, size + FRAGMENT_CHARGE, now)
        if datagram is None:
            self._drops.add(DropReason.FRAGMENT_MEMORY)
            return None
        place = bisect_left(datagram.starts, start)
        datagram.starts.insert(place, start)
        datagram.pieces.insert(place, bytes(header.payload))
        datagram.held += size
        datagram.ecn |= 1 << (header.traffic_class & 3)
        if start == 0:
            datagram.first_header = bytes(header.packet[: header.header_length])
        if not more:
            datagram.end = start + size
        return self._complete(key, datagram) if datagram.held == datagram.end else None

    def poll_quotes(self) -> list[bytes]:
        """Beginnings of the fragments 0 of datagrams that expired; clears. Bounded."""
        quotes, self._quotes = self._quotes, []
        return quotes

    def next_timeout(self) -> float | None:
        """When the oldest datagram expires."""
        for datagram in self._datagrams.values():
            return datagram.deadline
        return None

    def handle_timeout(self, now: float) -> None:
        """Drop the datagrams whose time is over."""
        expired = []
        for key, datagram in self._datagrams.items():
            if datagram.deadline > now:
                break
            expired.append(key)
        for key in expired:
            datagram = self._remove(key)
            if datagram.given_up is not None:
                continue
            self._drops.add(DropReason.FRAGMENT_TIMEOUT, len(datagram.starts))
            first = datagram.first_header
            if first is not None and len(self._quotes) < self._limits.reassembly_datagrams:
                self._quotes.append((first + datagram.pieces[0])[:QUOTE_BYTES])

    def _objection(
        self, datagram: _Datagram, start: int, payload: memoryview, more: bool
    ) -> DropReason | None:
        """Why this fragment cannot join the datagram."""
        end = start + len(payload)
        starts = datagram.starts
        place = bisect_left(starts, start)
        if place < len(starts) and starts[place] == start and datagram.pieces[place] == payload:
            # Only the last piece may end where the datagram ends, so its flag is known by its place.
            if more == (end != datagram.end):
                return DropReason.FRAGMENT_DUPLICATE
            return DropReason.FRAGMENT_OVERLAP
        if place < len(starts) and starts[place] < end:
            return DropReason.FRAGMENT_OVERLAP
        if place > 0 and starts[place - 1] + len(datagram.pieces[place - 1]) > start:
            return DropReason.FRAGMENT_OVERLAP
        end_known = datagram.end >= 0
        if end_known and (not more or end > datagram.end):
            return DropReason.BAD_FRAGMENT
        if not end_known and not more and place < len(starts):
            return DropReason.BAD_FRAGMENT
        if len(starts) >= self._limits.reassembly_fragments:
            return DropReason.FRAGMENT_MEMORY
        return None

    def _admit(self, key: Key, charge: int, now: float) -> _Datagram | None:
        """The datagram of `key`, old or new, with `charge` more bytes; None if there is no room for it."""
        limits = self._limits
        datagram = self._datagrams.get(key)
        if datagram is None:
            if limits.reassembly_datagrams < 1 or limits.reassembly_fragments < 1:
                return None
            if DATAGRAM_CHARGE + charge > limits.reassembly_bytes:
                return None
            while len(self._datagrams) >= limits.reassembly_datagrams:
                self._evict(next(iter(self._datagrams)))
            datagram = _Datagram(now + limits.reassembly_timeout)
            self._datagrams[key] = datagram
            self._bytes += DATAGRAM_CHARGE
        while self._bytes + charge > limits.reassembly_bytes:
            oldest = next(iter(self._datagrams))
            if oldest == key:
                if len(self._datagrams) == 1:
                    self._evict(key)
                    return None
                # The one that grows is the last to go, else its sender could never finish it.
                oldest = next(other for other in self._datagrams if other != key)
            self._evict(oldest)
        datagram.charge += charge
        self._bytes += charge
        return datagram

    def _complete(self, key: Key, datagram: _Datagram) -> Reassembled | None:
        self._remove(key)
        ecn = datagram.ecn
        marked = bool(ecn & 1 << _CE)
        if marked and ecn & 1 << _NOT_ECT:
            self._drops.add(DropReason.BAD_FRAGMENT, len(datagram.starts))
            return None
        first = datagram.first_header
        assert first is not None, "no byte is missing, so the first one is there"
        return Reassembled(first, datagram.pieces, marked)

    def _remove(self, key: Key) -> _Datagram:
        datagram = self._datagrams.pop(key)
        self._bytes -= datagram.charge
        return datagram

    def _evict(self, key: Key) -> None:
        self._drops.add(DropReason.FRAGMENT_MEMORY, len(self._remove(key).starts))

    def _give_up(self, datagram: _Datagram, reason: DropReason) -> None:
        """Free what is held and refuse the rest of the datagram until its time is over."""
        self._drops.add(reason, len(datagram.starts))
        self._bytes -= datagram.charge - DATAGRAM_CHARGE
        datagram.charge = DATAGRAM_CHARGE
        datagram.given_up = reason
        datagram.starts = []
        datagram.pieces = []
        datagram.first_header = None
