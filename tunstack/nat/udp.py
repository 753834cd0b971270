"""UDP from the guest: one host socket for each guest address and port (RFC 4787).

Theory of operation. The first datagram from a guest (address, port) makes a mapping, an unconnected
socket through which everything from there leaves, whatever its destination: endpoint-independent
mapping (REQ-1). What comes back passes if its sender's address has been sent to (address-dependent
filtering, REQ-8), and so a sender on the host's loopback passes only where the guest has sent through
`host_loopback`; it is shown under that address. Policy is asked before every datagram.

A mapping remembers its recent destinations, each with the beginning of the last datagram sent
there, so that an error from the socket's queue becomes the ICMP error that the guest's own packet
deserves. Errors neither end nor refresh a mapping (REQ-12).

A route may lead a destination elsewhere, which is no matter of mappings; see `nat.routed_udp`.

An accelerator may carry destinations that were admitted before (`nat.fast_udp`); the mapping then holds a
lease, by which it hears, whenever that matters, what was sent where and when.

=========  ==============================================================
idle       `udp_idle` after the last datagram in either direction (REQ-5, REQ-6)
port 53    a mapping that has sent to port 53 only ends with the last outstanding answer, or after
           `udp_dns_idle`
limit      at `udp_mappings`, or without a descriptor, the mapping that is idle for longest goes
=========  ==============================================================
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from tunstack.errors import DropReason
from tunstack.ip.header import UDP
from tunstack.ip.udp import UdpDatagram
from tunstack.nat.channel import QUOTE
from tunstack.nat.context import Context, DatagramLease, Destination, Services
from tunstack.nat.datagram_socket import Address, DatagramSocket, traffic_class_of, train_size_of
from tunstack.nat.error_queue import QueuedError
from tunstack.nat.poller import ERROR, READ
from tunstack.nat.portable import prepare_datagrams
from tunstack.nat.routed_udp import RoutedUdp
from tunstack.nat.routes import Route, Routes

RECEIVE_BURST = 32
"""Most datagrams read from one socket per wake-up, so that a busy one starves nobody."""
OFFER_AFTER = 2
"""Datagrams to and from a destination before it is worth an accelerator and a buffer: not one question."""
_DNS = 53


class UdpNat:
    """All UDP mappings of a gateway, the one idle for longest first.

    Attributes:
        routed: the flows to destinations that routes lead elsewhere.
    """

    __slots__ = (
        "_context",
        "_mappings",
        "_receive_memory",
        "_routes",
        "endpoint_filtering",
        "routed",
        "services",
        "targets",
    )

    def __init__(self, context: Context, *, services: Services, endpoint_filtering: bool = False) -> None:
        """`services`: who gets datagrams to own addresses before this."""
        self._context = context
        self.services = services
        self._mappings: OrderedDict[tuple[bytes, int], UdpMapping] = OrderedDict()
        self._routes = Routes()
        self.routed = RoutedUdp(context)
        self.endpoint_filtering = endpoint_filtering
        self.targets = 0
        """Destinations that all mappings together remember."""
        self._receive_memory = context.limits.udp_receive_memory

    def __len__(self) -> int:
        return len(self._mappings)

    def datagram(self, datagram: UdpDatagram, now: float) -> None:
        """Send the guest's datagram on its way."""
        context = self._context
        route = self._routes.find(datagram.dst, datagram.dst_port)
        opener = None if route is None else route.opener
        if route is not None and opener is not None and route.is_end:
            self.routed.datagram(route, opener, datagram, now)
            return
        verdict = context.policy.decide(UDP, datagram.src, datagram.dst, datagram.dst_port)
        if not verdict.allow:
            context.drops.add(DropReason.POLICY)
            if verdict.kind is not None:
                context.stack.send_icmp_error(datagram.quote, verdict.kind, now)
            return
        if route is not None and opener is not None and verdict.destination == datagram.dst:
            self.routed.datagram(route, opener, datagram, now)
            return
        self._settle()
        key = (datagram.src, datagram.src_port)
        mapping = self._mappings.get(key)
        if mapping is None:
            mapping = self._open(key, now)
            if mapping is None:
                context.drops.add(DropReason.FLOW_LIMIT)
                return
        else:
            self._mappings.move_to_end(key)
        mapping.send(datagram, verdict.destination, now)

    def add_route(self, route: Route) -> None:
        """See `Routes.add`; ValueError. Mappings follow it with the next datagram."""
        self._routes.add(route)
        self._recall()

    def remove_route(self, route: Route) -> None:
        """The flows that have followed it end."""
        self._routes.remove(route)
        self.routed.forget(route)

    def is_routed(self, destination: Destination) -> bool:
        """Whether a route leads it elsewhere."""
        route = self._routes.find(*destination)
        return route is not None and route.opener is not None

    def remove(self, mapping: UdpMapping) -> None:
        """Close a mapping."""
        if not mapping.is_open:
            return
        if mapping.lease is not None:
            mapping.lease.end()
        del self._mappings[mapping.guest, mapping.guest_port]
        self._receive_memory += mapping.receive_buffer
        self.targets -= mapping.remembered
        context = self._context
        context.timers.cancel(mapping)
        context.poller.remove(mapping.socket.sock)
        mapping.socket.sock.close()
        context.budget.give()

    def close(self) -> None:
        """Close all mappings and flows."""
        self.routed.close()
        for mapping in list(self._mappings.values()):
            self.remove(mapping)

    def enlarge(self, mapping: UdpMapping) -> None:
        """Give `mapping` a larger receive buffer, if there is memory for one.

        What the system gives every socket is 2 ms of a fast sender; the gateway may be held up for longer.
        """
        size = self._context.limits.udp_receive_buffer
        if not mapping.receive_buffer and size <= self._receive_memory:
            self._receive_memory -= size
            mapping.receive_buffer = size
            mapping.socket.enlarge(size)

    def touch(self, mapping: UdpMapping) -> None:
        """`mapping` is in use."""
        self._settle()
        self.move_to_end(mapping)

    def move_to_end(self, mapping: UdpMapping) -> None:
        """`mapping` was used after all others."""
        self._mappings.move_to_end((mapping.guest, mapping.guest_port))

    def _settle(self) -> None:
        """Hear from the accelerator which mappings it has used, so that their order is right."""
        carrier = self._context.carrier
        if carrier is not None:
            carrier.datagrams.settle()

    def _recall(self) -> None:
        carrier = self._context.carrier
        if carrier is not None:
            carrier.datagrams.recall()

    def _open(self, key: tuple[bytes, int], now: float) -> UdpMapping | None:
        context = self._context
        if len(self._mappings) >= context.limits.udp_mappings:
            self._evict()
        if not context.budget.take() and (not self._evict() or not context.budget.take()):
            return None
        family = socket.AF_INET if len(key[0]) == 4 else socket.AF_INET6
        sock = _open_socket(family)
        if sock is None and self._evict():
            sock = _open_socket(family)
        if sock is None:
            context.budget.give()
            return None
        mapping = UdpMapping(self, context, key, sock)
        self._mappings[key] = mapping
        context.poller.add(sock, mapping, READ)
        context.counters.udp_mappings += 1
        return mapping

    def _evict(self) -> bool:
        """Close the mapping that is idle for longest, if there is any."""
        if not self._mappings:
            return False
        self._context.drops.add(DropReason.UDP_MAPPING_EVICTED)
        self.remove(next(iter(self._mappings.values())))
        return True


def _open_socket(family: socket.AddressFamily) -> socket.socket | None:
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
    except OSError:
        return None
    sock.setblocking(False)
    prepare_datagrams(sock)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _cut(train: bytes, size: int) -> Iterator[bytes]:
    """The datagrams of a train."""
    return (train[start : start + size] for start in range(0, len(train), size))


class _Target:
    """A destination that a mapping has sent to.

    `guest_view` is its address as the guest knows it, `quote` the beginning of the last
    datagram sent there, `count` how many were seen in either direction without an accelerator;
    `has_answered`: a datagram has come from there, and no error since.
    """

    __slots__ = ("address", "count", "guest_view", "has_answered", "quote")

    def __init__(self, address: Address, guest_view: bytes) -> None:
        self.address = address
        self.guest_view = guest_view
        self.quote = b""
        self.count = 0
        self.has_answered = False


class UdpMapping:
    """One guest (address, port) and its socket; the token of the socket.

    Attributes:
        lease: held while an accelerator carries some of its destinations.
        receive_buffer: bytes of `Limits.udp_receive_memory` that it has.
    """

    __slots__ = (
        "_burst",
        "_context",
        "_last",
        "_nat",
        "_outstanding",
        "_peers",
        "_targets",
        "guest",
        "guest_port",
        "lease",
        "receive_buffer",
        "socket",
    )

    def __init__(self, nat: UdpNat, context: Context, key: tuple[bytes, int], sock: socket.socket) -> None:
        self._nat = nat
        self._context = context
        self.guest, self.guest_port = key
        self.socket = DatagramSocket(sock, self._report)
        self._targets: OrderedDict[Destination, _Target] = OrderedDict()
        self._last: _Target | None = None
        self._peers: dict[str, list[_Target]] = {}
        self._outstanding: int | None = 0
        """Answers from port 53 still to come; None once it has sent elsewhere."""
        self._burst = 1
        self.receive_buffer = 0
        self.lease: DatagramLease | None = None

    @property
    def is_open(self) -> bool:
        """Whether it has not been closed."""
        return self.socket.sock.fileno() >= 0

    @property
    def remembered(self) -> int:
        """Destinations remembered."""
        return len(self._targets)

    def send(self, datagram: UdpDatagram, destination: bytes, now: float) -> None:
        """Send to `destination`, the host-side address of `datagram.dst`.

        The stack, as a router, has decremented the hop limit.
        """
        if self.lease is not None and self.lease.settle():
            self.socket.drain(now)
        key = (datagram.dst, datagram.dst_port)
        target = self._targets.get(key)
        if target is None:
            target = self._remember(key, destination)
        elif target is not self._last:
            self._targets.move_to_end(key)
        self._last = target
        context = self._context
        if datagram.dst_port != _DNS:
            self._outstanding = None
            context.timers.set(self, now + context.limits.udp_idle)
        elif self._outstanding is not None:
            self._outstanding += 1
            context.timers.set(self, now + context.limits.udp_dns_idle)
        failure = self.socket.deliver(
            datagram.payload,
            target.address,
            datagram.hop_limit,
            datagram.traffic_class,
            datagram.dont_fragment,
            datagram.gso_size,
            now,
        )
        # Not before: errors found while sending are about what was sent there earlier.
        target.quote = bytes(datagram.quote[:QUOTE])
        if self.lease is not None:
            self.lease.set_dont_fragment(datagram.dont_fragment)
        if failure is None:
            self._consider(key, target)
        else:
            context.drops.add(failure.reason)
            if failure.kind is not None:
                context.stack.send_icmp_error(target.quote, failure.kind, now, mtu=failure.mtu)

    def on_ready(self, ready: int, now: float) -> None:
        """Datagrams or errors are there."""
        if ready & ERROR:
            self.socket.drain(now)
        if ready & READ:
            self._receive(now)

    def on_timeout(self, now: float) -> None:
        if self.lease is not None:
            deadline = self.lease.last_used + self._context.limits.udp_idle
            if deadline > now:
                self._context.timers.set(self, deadline)
                return
        self._nat.remove(self)

    # what an accelerator asks and tells

    def admitted(self, destination: Destination) -> Address | None:
        """Where the next datagram to `destination` would go, if nothing has to be decided about it."""
        target = self._targets.get(destination)
        if target is None or self._outstanding is not None or destination[1] == _DNS:
            return None
        if self._nat.is_routed(destination):
            return None
        # The address by which the guest knows the sender of an answer must not be a question either.
        if any(other.guest_view != target.guest_view for other in self._peers[target.address[0]]):
            return None
        policy = self._context.policy
        verdict = policy.decide(UDP, self.guest, *destination)
        if not verdict.allow or not policy.is_lasting or (UDP, *destination) in self._nat.services:
            return None
        same = socket.inet_ntop(self.socket.sock.family, verdict.destination) == target.address[0]
        return target.address if same else None

    def has_answered(self, destination: Destination) -> bool:
        """Whether a datagram has come from `destination`, and no error since."""
        return self._targets[destination].has_answered

    def was_used(self) -> None:
        """The mapping was used, after all others."""
        self._nat.move_to_end(self)

    def has_sent(self, destination: Destination, quote: bytes) -> None:
        """Datagrams went to `destination`, the last of which begins with `quote`."""
        self._last = self._targets[destination]
        self._last.quote = quote
        self._targets.move_to_end(destination)

    def resume(self, last_used: float) -> None:
        """The lease, which has ended, was last used then."""
        deadline = last_used + self._context.limits.udp_idle
        if deadline > (self._context.timers.get(self) or 0.0):
            self._context.timers.set(self, deadline)

    def take(self, datagrams: Sequence[tuple[bytes, Address, int, int]], now: float) -> None:
        """Pass on what was received for the mapping: payload, sender, TOS, and `train_size_of` of each."""
        if not self.is_open:
            return
        passed = False
        for payload, address, traffic_class, size in datagrams:
            passed |= self._pass(payload, address, traffic_class, size, now)
        if passed:
            self._refresh(now)

    def _receive(self, now: float) -> None:
        """Read up to a burst, which grows while there is more, so that few reads find nothing."""
        receive = self.socket.receive
        passed = False
        for _ in range(self._burst):
            try:
                payload, ancillary, _, address = receive()
            except BlockingIOError:
                self._burst = max(1, self._burst >> 1)
                break
            except OSError:
                self.socket.drain(now)  # an error of an earlier datagram: the read was not about it
                continue
            if not ancillary:
                self._context.counters.untold += 1
            size = train_size_of(ancillary)
            if not self._pass(payload, address, traffic_class_of(ancillary), size, now):
                continue
            passed = True
            if self._outstanding is not None and address[1] == _DNS:
                self._outstanding -= 1
                if self._outstanding <= 0:
                    self._nat.remove(self)
                    return
        else:
            self._burst = min(RECEIVE_BURST, self._burst << 1)
        if passed:
            self._refresh(now)

    def _pass(self, payload: bytes, address: Address, traffic_class: int, size: int, now: float) -> bool:
        """Send what came from `address` to the guest, if it may pass: a datagram, or pieces of `size`."""
        source = self._source(address[0])
        size = size or len(payload) or 1
        if source is None:
            self._context.drops.add(DropReason.UDP_FILTERED, max(1, -(-len(payload) // size)))
            return False
        pieces = [payload] if size >= len(payload) else list(_cut(payload, size))
        for piece in pieces:
            self._context.stack.send_udp(
                source, address[1], self.guest, self.guest_port, piece, now, traffic_class=traffic_class
            )
        key = (source, address[1])
        target = self._targets.get(key)
        if target is not None:
            target.has_answered = True
            self._consider(key, target)
        return True

    def _refresh(self, now: float) -> None:
        """Something has passed to the guest."""
        self._nat.touch(self)
        if self._outstanding is None:
            self._context.timers.set(self, now + self._context.limits.udp_idle)

    def _consider(self, key: Destination, target: _Target) -> None:
        target.count += 1
        if target.count == OFFER_AFTER and self._outstanding is None:
            self._nat.enlarge(self)
        carrier = self._context.carrier
        if (
            carrier is not None
            and target.count >= OFFER_AFTER
            and self._outstanding is None
            and (self.lease is None or not self.lease.carries(key))
        ):
            carrier.datagrams.consider(self, key)

    def _source(self, host: str) -> bytes | None:
        """The guest's view of the sender `host`, or None if it must not pass."""
        targets = self._peers.get(host)
        if targets is not None:
            return targets[-1].guest_view
        if not self._nat.endpoint_filtering:
            return None
        if "%" in host:
            return None  # link-local: the guest is not on that link
        address = socket.inet_pton(self.socket.sock.family, host)
        verdict = self._context.policy.decide(UDP, self.guest, address, 0)
        return address if verdict.allow and verdict.destination == address else None

    def _remember(self, key: Destination, destination: bytes) -> _Target:
        limits = self._context.limits
        targets = self._targets
        full = len(targets) >= limits.udp_destinations or self._nat.targets >= limits.udp_destinations_total
        if full and targets:
            place, oldest = targets.popitem(last=False)
            if self.lease is not None:
                self.lease.withdraw(place)
            self._nat.targets -= 1
            peers = self._peers[oldest.address[0]]
            peers.remove(oldest)
            if not peers:
                del self._peers[oldest.address[0]]
        target = _Target((socket.inet_ntop(self.socket.sock.family, destination), key[1]), key[0])
        targets[key] = target
        self._nat.targets += 1
        others = self._peers.setdefault(target.address[0], [])
        if self.lease is not None and any(other.guest_view != target.guest_view for other in others):
            self.lease.end()  # what comes from there is shown under the new address
        others.append(target)
        return target

    def _report(self, error: QueuedError, now: float) -> None:
        """An error of an earlier datagram becomes an ICMP error about the guest's own."""
        if error.kind is None or error.host is None:
            return
        if self.lease is not None:
            self.lease.settle()
        for target in self._peers.get(error.host, ()):
            if target.address[1] == error.port:
                break
        else:
            self._context.drops.add(DropReason.ICMP_NO_MATCH)
            return
        target.has_answered = False
        self._context.stack.send_icmp_error(
            target.quote,
            error.kind,
            now,
            mtu=error.mtu,
            source=self._context.policy.reporter(error.offender, error.host, target.guest_view),
        )
