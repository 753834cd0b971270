"""Which UDP destinations the fast path carries: offers, returns, and what C leaves to Python.

Theory of operation. A destination with which Python has exchanged `udp.OFFER_AFTER` datagrams is *considered*
at the end of the round. If the next datagram would need no decision (`UdpMapping.admitted`) and the guest's
neighbour entry is known, the pair of mapping and destination is offered to C as a *path*; the mapping holds a
`_Carried` from its first path to its last. Paths end when their destination is forgotten or their mapping
closed, when an address of the host or of the gateway changes, when a service begins to answer at the
destination, when the neighbour changes or the device goes; and the next datagram is considered anew.

What C does with a mapping moves it, its destinations and its idle time; Python hears of it when it needs to
know, which is before it moves any itself (`settle`).
"""

from __future__ import annotations

import socket
from typing import Any

from tunstack.errors import DropReason
from tunstack.ip import ipv4, ipv6
from tunstack.ip.header import UDP
from tunstack.ip.udp import HEADER_LENGTH
from tunstack.link.neighbour import REACHABLE_TIME
from tunstack.nat.context import Destination
from tunstack.nat.datagram_socket import Address
from tunstack.nat.udp import UdpMapping
from tunstack.native.fastpath import Datagram, FastPath, ffi
from tunstack.stack import Stack

_LEAST_REASSEMBLY = 1 << 18
"""Bytes: with less Python might refuse a datagram that fits what C has for one."""

Received = tuple[bytes, Address, int, int]
"""What `UdpMapping.take` takes."""


class _Carried:
    """A mapping some of whose destinations C carries. Implements `nat.context.DatagramLease`."""

    __slots__ = ("_carrier", "_paths", "c", "link_header", "mapping")

    def __init__(self, carrier: FastDatagrams, mapping: UdpMapping, c: Any, link_header: bytes) -> None:
        self._carrier = carrier
        self._paths: dict[Destination, Any] = {}
        self.mapping = mapping
        self.c = c
        self.link_header = link_header

    @property
    def last_used(self) -> float:
        """See `DatagramLease`."""
        at: float = self.c.last_used
        return at

    def carries(self, destination: Destination) -> bool:
        """See `DatagramLease`."""
        return destination in self._paths

    def settle(self) -> bool:
        """See `DatagramLease`."""
        for address, port, quote in self._carrier.fast.sent_since(self.c):
            self.mapping.has_sent((address, port), quote)
        failed = bool(self.c.has_failed)
        self.c.has_failed = False
        return failed

    def set_dont_fragment(self, dont_fragment: bool) -> None:
        """See `DatagramLease`."""
        self.c.dont_fragment = dont_fragment

    def add(self, destination: Destination, path: Any) -> None:
        """Offer the filled in `path` to `destination`."""
        if self._carrier.fast.offer_path(self.c, path):
            self._paths[destination] = path
        elif not self._paths:
            self.end()

    def withdraw(self, destination: Destination) -> None:
        """See `DatagramLease`; what it has sent is settled already."""
        path = self._paths.pop(destination, None)
        if path is not None:
            self._carrier.withdraw(self, destination, path)
            if not self._paths:
                self._carrier.end(self)

    def end(self) -> None:
        """See `DatagramLease`."""
        self.settle()
        while self._paths:
            self._carrier.withdraw(self, *self._paths.popitem())
        self._carrier.end(self)


class FastDatagrams:
    """The UDP destinations of one gateway that C carries. Implements `nat.context.DatagramCarrier`."""

    def __init__(self, fast: FastPath, stack: Stack) -> None:
        self.fast = fast
        self._stack = stack
        self._carried: dict[Any, _Carried] = {}
        self._own: dict[Destination, set[_Carried]] = {}
        """Who carries what to an own address."""
        self._candidates: dict[tuple[UdpMapping, Destination], None] = {}
        fast.c.udp.mtu = stack.mtu
        limits = stack.limits
        if limits.reassembly_datagrams and limits.reassembly_bytes >= _LEAST_REASSEMBLY:
            fast.c.udp.most_pieces = limits.reassembly_fragments

    def __len__(self) -> int:
        """Destinations that are carried, of all mappings together."""
        count: int = self.fast.c.udp.path_count
        return count

    def consider(self, mapping: UdpMapping, destination: Destination) -> None:
        """See `DatagramCarrier`."""
        self._candidates[mapping, destination] = None

    def settle(self) -> None:
        """See `DatagramCarrier`."""
        for c in self.fast.used_since():
            self._carried[c].mapping.was_used()

    def recall(self, destination: Destination | None = None) -> None:
        """See `DatagramCarrier`."""
        if destination is None:
            for carried in list(self._carried.values()):
                carried.end()
            return
        for carried in list(self._own.get(destination, ())):
            carried.settle()
            carried.withdraw(destination)

    def offer(self) -> None:
        """Offer what was considered and can be carried."""
        if not self._candidates:
            return
        candidates, self._candidates = self._candidates, {}
        for mapping, destination in candidates:
            if mapping.is_open and not (mapping.lease is not None and mapping.lease.carries(destination)):
                self._offer(mapping, destination)

    def decide(self, now: float) -> None:
        """Let the mappings have what C has left for Python."""
        grouped: dict[_Carried, list[Received]] = {}
        for datagram in self.fast.datagrams():
            if datagram.socket:
                grouped.setdefault(self._carried[datagram.socket], []).append(_received(datagram))
        for carried, datagrams in grouped.items():
            carried.mapping.take(datagrams, now)

    def count_drops(self) -> None:
        """Count what C had to drop."""
        c = self.fast.c.udp
        for name, reason in (
            ("socket_full", DropReason.UDP_SOCKET_FULL),
            ("queue_full", DropReason.TRANSMIT_QUEUE_FULL),
        ):
            if count := getattr(c, name):
                self._stack.drops.add(reason, count)
                setattr(c, name, 0)

    def check_neighbours(self, now: float) -> None:
        """Take back the mappings whose guest has another MAC, or none that is known to be right.

        Python would use the entry with every datagram to the guest, and so keep it fresh.
        """
        link = self._stack.link
        for carried in list(self._carried.values()):
            guest = carried.mapping.guest
            header = link.known_header(guest)
            if header is None and carried.last_used > now - REACHABLE_TIME:
                header = link.use_header(guest, now)
            if header != carried.link_header:
                carried.end()

    def close(self) -> None:
        """Take everything back: the device is gone."""
        self.recall()
        self.count_drops()
        self._candidates.clear()

    def withdraw(self, carried: _Carried, destination: Destination, path: Any) -> None:
        """Take `path` back."""
        self.fast.withdraw_path(path)
        holders = self._own.get(destination)
        if holders is not None:
            holders.discard(carried)
            if not holders:
                del self._own[destination]

    def end(self, carried: _Carried) -> None:
        """`carried` has no paths any more."""
        mapping = carried.mapping
        self.settle()
        del self._carried[carried.c]
        mapping.lease = None
        mapping.resume(carried.last_used)
        self.fast.close_socket(carried.c)

    def _offer(self, mapping: UdpMapping, destination: Destination) -> None:
        address = mapping.admitted(destination)
        if address is None:
            return
        link_header = self._stack.link.use_header(mapping.guest, self._stack.now)
        if link_header is None:
            return
        carried = self._carry(mapping, link_header)
        if carried is None or carried.link_header != link_header:
            return
        is_own = destination[0] in self._stack.own_addresses
        path = self.fast.new_path()
        path.is_own = is_own
        path.has_answered = mapping.has_answered(destination)
        self._fill(path, mapping, destination, address, link_header)
        carried.add(destination, path)
        if is_own and carried.carries(destination):
            self._own.setdefault(destination, set()).add(carried)

    def _carry(self, mapping: UdpMapping, link_header: bytes) -> _Carried | None:
        if isinstance(mapping.lease, _Carried):
            return mapping.lease
        c = self.fast.open_socket(mapping.socket.sock.fileno())
        if c is None:
            return None
        mapping.socket.accept_trains()
        c.mac = link_header[:6] or bytes(6)
        c.dont_fragment = mapping.socket.dont_fragment
        c.last_used = float("-inf")
        self._carried[c] = mapping.lease = carried = _Carried(self, mapping, c, link_header)
        return carried

    def _fill(
        self, path: Any, mapping: UdpMapping, destination: Destination, address: Address, link_header: bytes
    ) -> None:
        guest, outside = mapping.guest, destination[0]
        is_v4 = len(guest) == 4
        ip = ipv4 if is_v4 else ipv6
        template = ip.HeaderTemplate(outside, guest, UDP, 64, 0)
        header = template.emit(template.header_length + HEADER_LENGTH, 0, 0)
        head = link_header + header
        path.family = 4 if is_v4 else 6
        ffi.memmove(path.address, guest + outside, 2 * len(guest))
        path.ports = mapping.guest_port.to_bytes(2, "big") + destination[1].to_bytes(2, "big")
        ffi.memmove(path.peer, socket.inet_pton(mapping.socket.sock.family, address[0]), len(guest))
        path.peer_port = address[1]
        ffi.memmove(path.head, head, len(head))
        path.head_length = len(head)
        path.link_length = len(link_header)
        path.pseudo_sum = ipv4.pseudo_header_sum(outside, guest, UDP, 0)


def _received(datagram: Datagram) -> Received:
    family = socket.AF_INET if len(datagram.address) == 4 else socket.AF_INET6
    host = socket.inet_ntop(family, datagram.address)
    if datagram.scope:
        host = f"{host}%{datagram.scope}"
    return datagram.payload, (host, datagram.port), datagram.traffic_class, datagram.segment
