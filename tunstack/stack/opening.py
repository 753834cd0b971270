"""How a connection comes to be: from a request of the guest that is accepted, or from a connect to it.

Theory of operation. A SYN without a connection becomes a request, which is announced once and absorbs its
own retransmissions. It leaves the table by exactly one of accept, reset, unreachable and discard; how many
may wait is bounded by whoever admits them. One that the guest itself resets is announced again, as cancelled.
"""

from __future__ import annotations

from tunstack.errors import BadPacket, DropReason, LocalError
from tunstack.ip import ipv4
from tunstack.ip.header import TCP, IpHeader
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.stack.connections import Connections, flow_key
from tunstack.stack.events import Event
from tunstack.stack.icmp import Icmp
from tunstack.stack.network import Network
from tunstack.tcp import header as tcp_header
from tunstack.tcp.connection import Connection
from tunstack.tcp.header import ACK, RST, Segment
from tunstack.tcp.listener import FlowKey, TcpRequest
from tunstack.tcp.seq import add


def send_reset(
    network: Network,
    local: bytes,
    local_port: int,
    remote: bytes,
    remote_port: int,
    seq: int,
    ack: int | None,
    now: float,
) -> None:
    """Send a reset that belongs to no connection."""
    partial = ipv4.pseudo_header_sum(local, remote, TCP, tcp_header.HEADER_LEN)
    flags = RST if ack is None else RST | ACK
    l4 = tcp_header.emit(local_port, remote_port, seq, ack or 0, flags, 0, partial)
    network.send(local, remote, TCP, l4, (), now, csum_offset=tcp_header.CHECKSUM_OFFSET)


class Opening:
    """The requests that wait for an answer, and the answers.

    Attributes:
        requests: those that wait, by the key that their connection would have.
    """

    __slots__ = ("_connections", "_events", "_icmp", "_network", "requests")

    def __init__(self, network: Network, connections: Connections, icmp: Icmp, events: list[Event]) -> None:
        self._network = network
        self._connections = connections
        self._icmp = icmp
        self._events = events
        self.requests: dict[FlowKey, TcpRequest] = {}

    # what the guest says

    def asked(self, header: IpHeader, segment: Segment, key: FlowKey, now: float, above: int | None) -> None:
        """A SYN without a connection: a new request, or the retransmission of one.

        Raises:
            BadPacket: TCP_CONNECTION_LIMIT.
        """
        request = self.requests.get(key)
        if request is not None:
            request.update(segment)
            return
        if not self._connections.make_room():
            raise BadPacket(DropReason.TCP_CONNECTION_LIMIT)
        request = TcpRequest(key, header.src, header.dst, segment, header.quote(), now)
        request.above = above
        self._add(request)
        self._events.append(request)

    def reopened(self, header: IpHeader, segment: Segment, now: float) -> TcpRequest:
        """A SYN that came at `now`, and that an accelerator has dealt with so far; it is not announced."""
        key = header.src + header.dst + bytes(header.payload[:4])
        request = TcpRequest(key, header.src, header.dst, segment, header.quote(), now)
        self._add(request)
        return request

    def _add(self, request: TcpRequest) -> None:
        self.requests[request.key] = request
        self._connections.claim(request.key, 1)

    def withdrawn(self, segment: Segment, key: FlowKey) -> None:
        """A RST without a connection: the guest may have given up its request.

        Raises:
            BadPacket: TCP_NO_CONNECTION: it has not, or the numbers are wrong.
        """
        request = self.requests.get(key)
        if request is None or segment.flags & ACK or segment.seq != add(request.irs, 1):
            raise BadPacket(DropReason.TCP_NO_CONNECTION)
        request.cancelled = True
        self._events.append(request)

    # what the user says: see `Stack`

    def accept(self, request: TcpRequest, now: float) -> Connection:
        """Answer `request` by SYN-ACK."""
        self._connections.now = now
        return self.accept_at(request, now)

    def accept_at(self, request: TcpRequest, now: float, *, answered: bool = False) -> Connection:
        """The same, and that was at `now`; SYN-ACK was sent then if it is `answered`."""
        self._take(request)
        connection = self._connections.make(
            request.key, request.dst, request.dst_port, request.src, request.src_port, now, request.above
        )
        connection.ecn.accept(request.ecn)
        connection.open_passive(
            request.irs,
            request.window,
            request.mss,
            request.window_shift,
            request.ts_val,
            request.sack_permitted,
            now,
            answered=answered,
        )
        return connection

    def reset(self, request: TcpRequest, now: float) -> None:
        """Answer `request` by RST."""
        self._take(request)
        local, remote = (request.dst, request.dst_port), (request.src, request.src_port)
        send_reset(self._network, *local, *remote, 0, add(request.irs, 1), now)

    def unreachable(self, request: TcpRequest, kind: IcmpErrorKind, now: float) -> None:
        """Answer `request` by an ICMP error."""
        self._take(request)
        self._icmp.send_error(request.quote, kind, now)

    def discard(self, request: TcpRequest) -> None:
        """Leave `request` unanswered."""
        self._take(request)

    def _take(self, request: TcpRequest) -> None:
        if request.answered:
            raise LocalError("the request was answered before")
        request.answered = True
        del self.requests[request.key]
        self._connections.claim(request.key, -1)

    def connect(
        self, local: bytes, local_port: int, remote: bytes, remote_port: int, now: float
    ) -> Connection:
        """Send a SYN to the guest."""
        connections = self._connections
        connections.now = now
        if not self._network.is_one_host(remote):
            raise LocalError("not the address of one host")
        key = flow_key(remote, remote_port, local, local_port)
        if key in connections.by_key or key in self.requests:
            raise LocalError("the four-tuple is in use")
        if not connections.make_room():
            raise LocalError("too many connections")
        connection = connections.make(key, local, local_port, remote, remote_port, now)
        connection.open_active(now)
        return connection
