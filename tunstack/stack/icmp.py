"""ICMP of both families as the stack speaks it.

Theory of operation. Pings of own addresses are answered here; those of others are events, since the NAT
carries them. Errors about our segments go to their connection, those about datagrams up. What is sent as an
error, by the stack or by its user, shares one rate limit, and comes from an own address unless the caller
names a router further away.
"""

from __future__ import annotations

from tunstack.errors import BadPacket, DropCounters, DropReason
from tunstack.ip import icmp, icmpv6, layer, ndp
from tunstack.ip.addresses import is_multicast
from tunstack.ip.header import ICMP, ICMPV6, QUOTE_BYTES_V6, TCP, UDP, IpHeader
from tunstack.ip.icmp import EchoReply, EchoRequest, IcmpError, IcmpErrorKind
from tunstack.limits import Limits
from tunstack.packet import Buffer
from tunstack.stack.connections import HEADERS_LENGTH, Connections, flow_key
from tunstack.stack.events import Event
from tunstack.stack.network import Network

_MIN_PATH_MTU = {4: 552, 16: 1280}
"""By length of address. A smaller MTU in an ICMP error is a lie or an attack (RFC 5927 7.2, RFC 8201 4)."""


class Icmp:
    """Echo and errors, received and sent."""

    __slots__ = ("_connections", "_drops", "_events", "_limiter", "_network")

    def __init__(
        self,
        network: Network,
        connections: Connections,
        events: list[Event],
        limits: Limits,
        drops: DropCounters,
    ) -> None:
        self._network = network
        self._connections = connections
        self._events = events
        self._drops = drops
        self._limiter = icmp.RateLimiter(limits.icmp_errors_per_second, limits.icmp_errors_burst)

    # input; BadPacket for what is dropped

    def receive_v4(self, header: IpHeader, now: float) -> None:
        """Take an ICMPv4 message."""
        self._receive(icmp.parse(header), now)

    def receive_v6(self, header: IpHeader, now: float) -> None:
        """Take an ICMPv6 message, neighbour discovery included."""
        if header.payload and header.payload[0] in ndp.TYPES:
            discovery = self._network.discovery
            if discovery is None:
                raise BadPacket(DropReason.ICMP_IGNORED)  # there are no neighbours on this link
            discovery.receive(header, now)
            return
        message = icmpv6.parse(header)
        if isinstance(message, EchoRequest) and is_multicast(message.dst):
            self._address_member(message)
        self._receive(message, now)

    def _address_member(self, request: EchoRequest) -> None:
        """A ping of a group that we belong to counts as one of our own address (RFC 4443 4.2)."""
        network = self._network
        groups = {ndp.ALL_NODES, ndp.ALL_ROUTERS}
        groups.update(ndp.solicited_node(own) for own in network.own_addresses if len(own) == 16)
        source = network.own_address_for(request.src)
        if request.dst in groups and source is not None:
            request.dst = source

    def _receive(self, message: EchoRequest | EchoReply | IcmpError | None, now: float) -> None:
        if isinstance(message, EchoRequest):
            if message.dst in self._network.own_addresses:
                self.send_echo_reply(message, message.payload, now)
            else:
                self._events.append(message)
        elif isinstance(message, IcmpError):
            self._receive_error(message, now)
        else:
            self._drops.add(DropReason.ICMP_IGNORED)

    def _receive_error(self, error: IcmpError, now: float) -> None:
        """Errors about our segments go to their connection, those about datagrams up (MUST-54)."""
        if error.quoted_src_port is None:
            raise BadPacket(DropReason.ICMP_NO_MATCH)
        if error.protocol == UDP:
            self._events.append(error)
            return
        if error.protocol != TCP or error.quoted_seq is None or error.quoted_dst_port is None:
            raise BadPacket(DropReason.ICMP_NO_MATCH)
        key = flow_key(error.quoted_dst, error.quoted_dst_port, error.quoted_src, error.quoted_src_port)
        connection = self._connections.find(key, now)
        if connection is None:
            raise BadPacket(DropReason.ICMP_NO_MATCH)
        mss = 0
        if error.kind is IcmpErrorKind.FRAGMENTATION_NEEDED:
            family = len(error.quoted_dst)
            if error.mtu < _MIN_PATH_MTU[family]:
                raise BadPacket(DropReason.ICMP_IGNORED)
            mss = error.mtu - HEADERS_LENGTH[family]
        connection.on_unreachable(error.quoted_seq, mss, now, error.kind)

    # output

    def send_error(
        self, quote: Buffer, kind: IcmpErrorKind, now: float, *, mtu: int = 0, source: bytes | None = None
    ) -> None:
        """See `Stack.send_icmp_error`."""
        try:
            header = layer.parse_quote(quote[:QUOTE_BYTES_V6])
        except BadPacket as error:
            self._drops.add(error.reason)
            return
        network = self._network
        if header.version == 4:
            may_answer = icmp.may_answer(header, network.ip.broadcasts)
        else:
            may_answer = icmpv6.may_answer(header)
        dst = header.src
        if source is None:
            source = header.dst if header.dst in network.own_addresses else network.own_address_for(dst)
        if source is None or not may_answer:
            return
        if not self._limiter.allow(now):
            self._drops.add(DropReason.ICMP_RATE_LIMIT)
            return
        if header.version == 4:
            network.send(source, dst, ICMP, icmp.emit_error(kind, quote, mtu=mtu), (), now)
        else:
            message = icmpv6.emit_error(source, dst, kind, quote, mtu=mtu)
            network.send(source, dst, ICMPV6, message, (), now)

    def send_echo_reply(
        self, request: EchoRequest, payload: Buffer, now: float, *, hop_limit: int = 64
    ) -> None:
        """See `Stack.send_echo_reply`."""
        src, dst = request.dst, request.src
        if len(dst) == 4:
            protocol = ICMP
            message = icmp.emit_echo_reply(request.ident, request.seq, payload)
        else:
            protocol = ICMPV6
            message = icmpv6.emit_echo_reply(src, dst, request.ident, request.seq, payload)
        self._network.send(
            src,
            dst,
            protocol,
            message,
            (),
            now,
            hop_limit=hop_limit,
            traffic_class=request.traffic_class & 0xFC,
            dont_fragment=False,
        )
