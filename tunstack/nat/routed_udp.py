"""UDP from the guest to destinations that a route leads elsewhere.

Theory of operation. What goes from one guest address and port to one destination is a flow, with a channel
of its own; a channel that leads anywhere, a proxy's, serves all destinations of one guest address and port,
so that they see one sender (RFC 4787 REQ-1), and what comes from an address that was not sent to is filtered
(REQ-8). The first datagram opens the channel; what comes meanwhile waits, up to `WAITING` bytes. A refusal
is told to the guest by ICMP about the last datagram, as a router would. A flow ends when it is idle, when
its channel ends, or, at the limit, when it is idle for longest; the next datagram begins another.
"""

from __future__ import annotations

from collections import OrderedDict

from tunstack.errors import DropReason
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.ip.udp import UdpDatagram
from tunstack.nat.channel import QUOTE, Channel, Opened, Opener
from tunstack.nat.context import Context, Destination
from tunstack.nat.dialer import Dial, Refusal
from tunstack.nat.error_queue import kind_of_errno
from tunstack.nat.routes import Route

WAITING = 64 * 1024
"""Bytes that wait for a channel that is being opened."""
_ANSWERS = {
    Refusal.REFUSED: IcmpErrorKind.PORT_UNREACHABLE,
    Refusal.UNREACHABLE: IcmpErrorKind.HOST_UNREACHABLE,
    Refusal.NET_UNREACHABLE: IcmpErrorKind.NET_UNREACHABLE,
    Refusal.TIMEOUT: IcmpErrorKind.HOST_UNREACHABLE,
    Refusal.PROHIBITED: IcmpErrorKind.ADMIN_PROHIBITED,
}

_Key = tuple[bytes, int, Route, Destination | None]
"""The guest's address and port, the route, and the destination if the channel leads to that alone."""


class RoutedUdp:
    """The flows of a NAT that follow routes, the one idle for longest first."""

    __slots__ = ("_context", "_flows")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._flows: OrderedDict[_Key, RoutedFlow] = OrderedDict()

    def __len__(self) -> int:
        return len(self._flows)

    def datagram(self, route: Route, opener: Opener, datagram: UdpDatagram, now: float) -> None:
        """Send the guest's datagram to where `opener`, that of `route`, leads."""
        destination = (datagram.dst, datagram.dst_port)
        key = (datagram.src, datagram.src_port, route, None if opener.leads_anywhere else destination)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._open(key, opener, bytes(datagram.quote[:QUOTE]), now)
            if flow is None:
                self._context.drops.add(DropReason.FLOW_LIMIT)
                return
        if flow.is_open:  # else it was refused at once
            flow.send(datagram, destination, now)

    def touch(self, flow: RoutedFlow) -> None:
        """`flow` is in use."""
        if flow.is_open:
            self._flows.move_to_end(flow.key)

    def remove(self, flow: RoutedFlow) -> None:
        """Close a flow."""
        if not flow.is_open:
            return
        flow.is_open = False
        del self._flows[flow.key]
        self._context.timers.cancel(flow)
        flow.close()
        self._context.budget.give(flow.descriptors)

    def forget(self, route: Route) -> None:
        """Close the flows of a route."""
        for flow in [flow for flow in self._flows.values() if flow.key[2] is route]:
            self.remove(flow)

    def close(self) -> None:
        """Close all flows."""
        for flow in list(self._flows.values()):
            self.remove(flow)

    def _open(self, key: _Key, opener: Opener, quote: bytes, now: float) -> RoutedFlow | None:
        context = self._context
        if len(self._flows) >= context.limits.udp_mappings:
            self._evict()
        while not context.budget.take(opener.descriptors):
            if not self._evict():
                return None
        flow = RoutedFlow(self, context, key, opener.descriptors, quote)
        self._flows[key] = flow
        context.counters.udp_mappings += 1
        flow.open(opener, now)
        return flow

    def _evict(self) -> bool:
        if not self._flows:
            return False
        self._context.drops.add(DropReason.UDP_MAPPING_EVICTED)
        self.remove(next(iter(self._flows.values())))
        return True


class RoutedFlow:
    """One of them; the receiver of its channel.

    Attributes:
        key: see `_Key`.
        descriptors: of its channel.
        is_open: it has not been removed.
    """

    __slots__ = (
        "_channel",
        "_context",
        "_destinations",
        "_dial",
        "_flows",
        "_quote",
        "_waiting",
        "_waiting_bytes",
        "descriptors",
        "is_open",
        "key",
    )

    def __init__(self, flows: RoutedUdp, context: Context, key: _Key, descriptors: int, quote: bytes) -> None:
        self._flows = flows
        self._context = context
        self.key = key
        self.descriptors = descriptors
        self.is_open = True
        self._channel: Channel | None = None
        self._dial: Dial | None = None
        self._quote = quote
        self._destinations: OrderedDict[Destination, None] = OrderedDict()
        """Those that were sent to, of which so many are remembered as of a mapping; the last one last."""
        self._waiting: list[tuple[bytes, Destination]] = []
        self._waiting_bytes = 0

    def open(self, opener: Opener, now: float) -> None:
        """Begin."""
        self._context.timers.set(self, now + self._context.limits.dial_timeout)
        dial = opener.open(self._context, now, self._opened)
        if self.is_open and self._channel is None:
            self._dial = dial

    def send(self, datagram: UdpDatagram, destination: Destination, now: float) -> None:
        """Send a datagram, or a train of them, of the guest."""
        self._quote = bytes(datagram.quote[:QUOTE])
        self._destinations[destination] = None
        self._destinations.move_to_end(destination)
        if len(self._destinations) > self._context.limits.udp_destinations:
            self._destinations.popitem(last=False)
        for piece in datagram.pieces():
            self._send(piece, destination)
        self._refresh(now)

    def received(self, payload: bytes, source: Destination | None, now: float) -> None:
        """See `Receiver`."""
        if source is None:
            source = next(reversed(self._destinations))
        elif all(source[0] != known for known, _ in self._destinations):
            self._context.drops.add(DropReason.UDP_FILTERED)
            return
        self._context.stack.send_udp(*source, self.key[0], self.key[1], payload, now)
        self._refresh(now)

    def failed(self, code: int, now: float) -> None:
        """See `Receiver`."""
        kind = kind_of_errno(code)
        if kind is not None:
            self._context.stack.send_icmp_error(self._quote, kind, now)

    def ended(self, now: float) -> None:
        """See `Receiver`."""
        self._flows.remove(self)

    def on_timeout(self, now: float) -> None:
        """It is idle, or nobody has answered the attempt to open its channel."""
        if self._channel is None:
            self._refuse(Refusal.TIMEOUT, now)
        self._flows.remove(self)

    def close(self) -> None:
        """Close the channel; called when it is removed."""
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        if self._channel is not None:
            self._channel.close()
        self._waiting.clear()

    def _send(self, payload: memoryview, destination: Destination) -> None:
        if self._channel is not None:
            self._channel.send(payload, destination)
        elif self._waiting_bytes + len(payload) + 1 > WAITING:
            self._context.drops.add(DropReason.UDP_SOCKET_FULL)
        else:
            self._waiting_bytes += len(payload) + 1  # empty ones are bounded, too
            self._waiting.append((bytes(payload), destination))

    def _opened(self, outcome: Opened, now: float) -> None:
        self._dial = None
        if not self.is_open:
            if not isinstance(outcome, Refusal):
                outcome.close()
        elif isinstance(outcome, Refusal):
            self._refuse(outcome, now)
            self._flows.remove(self)
        else:
            self._channel = outcome
            outcome.start(self)
            waiting, self._waiting = self._waiting, []
            for payload, destination in waiting:
                outcome.send(payload, destination)
            self._refresh(now)

    def _refuse(self, refusal: Refusal, now: float) -> None:
        kind = _ANSWERS.get(refusal)
        self._context.drops.add(DropReason.UDP_SOCKET_ERROR, max(1, len(self._waiting)))
        if kind is not None:
            self._context.stack.send_icmp_error(self._quote, kind, now)

    def _refresh(self, now: float) -> None:
        """Something has passed."""
        if self.is_open and self._channel is not None:
            self._flows.touch(self)
            self._context.timers.set(self, now + self._context.limits.udp_idle)
