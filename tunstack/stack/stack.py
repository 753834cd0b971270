"""The whole of the stack: its parts made and joined, input sorted by protocol, output, time.

Theory of operation. `receive` takes what a device read and sorts it down to a connection, a request or an
event; nothing is sent from it. The driver then hands the events to whoever decides (the NAT), and
`poll_transmit` flushes every connection that was touched and returns the frames: one acknowledgement for a
batch, data where there is data. `settle` must be called before the device's buffers are reused. The stack is
a host for its own addresses and a router for all others, whose traffic it terminates: hop limits are
decremented, and what runs out is reported.

All tables are bounded by `limits`: connections, requests (by whoever admits them), neighbours, fragments.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from tunstack.errors import BadPacket, DropCounters, DropReason
from tunstack.ip import ipv6, udp
from tunstack.ip.addresses import Prefix, is_link_local, is_single_host
from tunstack.ip.header import ICMP, ICMPV6, TCP, UDP, IpHeader
from tunstack.ip.icmp import EchoRequest, IcmpErrorKind
from tunstack.ip.layer import IpLayer
from tunstack.limits import DEFAULT_LIMITS, Limits
from tunstack.link.interface import EthernetLink, IpLink
from tunstack.packet import Buffer, Packet
from tunstack.stack.connections import Accelerator, Connections
from tunstack.stack.events import Event
from tunstack.stack.icmp import Icmp
from tunstack.stack.network import Network
from tunstack.stack.opening import Opening
from tunstack.stack.segments import SegmentInput
from tunstack.tcp import congestion as congestion_control
from tunstack.tcp import header as tcp_header
from tunstack.tcp.congestion import CongestionControl
from tunstack.tcp.connection import Connection
from tunstack.tcp.hot import NEVER
from tunstack.tcp.isn import SequenceSource
from tunstack.tcp.listener import FlowKey, TcpRequest
from tunstack.tcp.statistics import TcpStatistics

CongestionFactory = Callable[[int], CongestionControl]


class Stack:
    """One network, seen from its gateway. See docs/architecture.md for the contract.

    Attributes:
        limits: what bounds every table.
        drops: one counter for each reason.
        own_addresses: IP addresses at which the stack is a host itself. If one of them is IPv6, the
            link-local address of the MAC is among them.
        ip: the IP layer.
        connections, requests: both by key.
        send_pool, receive_pool, receive_account: the memory of all connections.
    """

    def __init__(
        self,
        *,
        mac: bytes,
        mtu: int,
        prefixes: Iterable[Prefix],
        own_addresses: Iterable[bytes],
        rng: random.Random,
        l2: bool = True,
        limits: Limits = DEFAULT_LIMITS,
        drops: DropCounters | None = None,
        congestion: str = congestion_control.DEFAULT,
        ecn: bool = True,
    ) -> None:
        """`congestion` names one of `tcp.congestion.ALGORITHMS`; `ecn`: connections negotiate it."""
        drops = drops if drops is not None else DropCounters()
        events: list[Event] = []
        network = Network(mac, mtu, prefixes, own_addresses, rng, l2=l2, limits=limits, drops=drops)
        host = Connections(network, events, rng, congestion=congestion, ecn=ecn, limits=limits, drops=drops)
        self._events = events
        self._network = network
        self._host = host
        self._icmp = Icmp(network, host, events, limits, drops)
        self._opening = Opening(network, host, self._icmp, events)
        self._segments = SegmentInput(network, host, self._opening, drops)
        self.limits = limits
        self.drops = drops
        self.own_addresses: set[bytes] = network.own_addresses
        self.ip: IpLayer = network.ip
        self.connections: dict[FlowKey, Connection] = host.by_key
        self.requests: dict[FlowKey, TcpRequest] = self._opening.requests
        self.send_pool = host.send_pool
        self.receive_pool = host.receive_pool
        self.receive_account = host.receive_account

    @property
    def now(self) -> float:
        """The time of the call that is being served, or was last."""
        return self._host.now

    @property
    def congestion(self) -> CongestionFactory:
        """Makes the congestion control of each new connection from its MSS."""
        return self._host.congestion

    @congestion.setter
    def congestion(self, congestion: CongestionFactory) -> None:
        self._host.congestion = congestion

    @property
    def ecn(self) -> bool:
        """Whether new connections negotiate ECN."""
        return self._host.ecn

    @ecn.setter
    def ecn(self, ecn: bool) -> None:
        self._host.ecn = ecn

    @property
    def sequence(self) -> SequenceSource:
        """Where new connections have their initial sequence numbers from."""
        return self._host.sequence

    @sequence.setter
    def sequence(self, sequence: SequenceSource) -> None:
        self._host.sequence = sequence

    @property
    def mtu(self) -> int:
        """Bytes of the largest IP packet."""
        return self._network.mtu

    @property
    def l2(self) -> bool:
        """Whether the link carries Ethernet frames."""
        return self._network.l2

    @property
    def link(self) -> EthernetLink | IpLink:
        """What frames the packets."""
        return self._network.link

    # input

    def receive(self, packet: Packet, now: float) -> None:
        """Take one packet from the device. Never raises for what is in it."""
        self._host.now = now
        network = self._network
        offset = network.link.receive(packet, now)
        if offset < 0:
            return
        header = network.ip.receive(packet.head, offset, now)
        if header is None:
            return
        if not self._check_destination(header, packet, now):
            return
        try:
            if header.protocol == TCP:
                self._segments.receive(header, packet, now)
            elif header.protocol == UDP:
                self._receive_udp(header, packet)
            elif header.protocol == ICMP and header.version == 4:
                self._icmp.receive_v4(header, now)
            elif header.protocol == ICMPV6 and header.version == 6:
                self._icmp.receive_v6(header, now)
            else:
                self.drops.add(DropReason.UNKNOWN_PROTOCOL)
                if header.protocol != ipv6.NO_NEXT_HEADER or header.version == 4:
                    self._icmp.send_error(header.quote(), IcmpErrorKind.PROTOCOL_UNREACHABLE, now)
        except BadPacket as error:
            self.drops.add(error.reason)

    def _check_destination(self, header: IpHeader, packet: Packet, now: float) -> bool:
        """RFC 1122 3.3.6 for frames sent to many, RFC 1812 5.3.1 and RFC 8200 3 for hop limits."""
        dst = header.dst
        if self._network.l2 and packet.head[0] & 1 and self._network.is_one_host(dst):
            self.drops.add(DropReason.BAD_DESTINATION)
            return False
        if dst in self.own_addresses:
            return True
        if header.version == 6:
            if dst[0] == 0xFF:
                return True  # nothing is routed to a group; neighbour discovery wants to see 255
            if is_link_local(header.src):
                self.drops.add(DropReason.BAD_SOURCE)  # RFC 4291 2.5.6: not beyond the link
                return False
        if header.hop_limit <= 1 and is_single_host(dst):
            self.drops.add(DropReason.TTL_EXCEEDED)
            self._icmp.send_error(header.quote(), IcmpErrorKind.TTL_EXCEEDED, now)
            return False
        header.hop_limit -= 1
        return True

    def _receive_udp(self, header: IpHeader, packet: Packet) -> None:
        datagram = udp.parse(header, packet.checksum)
        if packet.gso_size and len(datagram.payload) > packet.gso_size:
            datagram.gso_size = packet.gso_size
        self._events.append(datagram)

    # events, output, time

    def poll_events(self) -> list[Event]:
        """What happened since the last call, in order. A connection appears at most once."""
        events = self._events[:]
        self._events.clear()
        for event in events:
            if isinstance(event, Connection):
                event.is_queued = False
        return events

    @property
    def has_events(self) -> bool:
        """Whether `poll_events` has something."""
        return bool(self._events)

    def poll_transmit(self, now: float) -> list[Packet]:
        """Flush every connection that was touched; the packets to hand to the device, in order."""
        self._host.now = now
        self._host.flush(now)
        return self._network.poll_transmit()

    def settle(self) -> None:
        """Copy what is still borrowed from the buffers of the device."""
        self._host.settle()

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called (seconds), or None."""
        deadline = self._host.timers.next_deadline()
        other = self._network.next_timeout()
        if other is not None and (deadline is None or other < deadline):
            return other
        return deadline

    def handle_timeout(self, now: float) -> None:
        """Run the timers that are due."""
        self._host.now = now
        self._host.handle_timeout(now)
        self._network.handle_timeout(now)
        for packet in self.link.poll_failures():
            self._host.next_hop_failed(packet, now)
        for quote, kind in self.ip.poll_errors():
            self._icmp.send_error(quote, kind, now)

    # the link

    def set_link(self, *, l2: bool, afresh: bool = False) -> None:
        """Change the kind of link, or begin one `afresh`: neighbours and what waited are forgotten."""
        self._network.set_link(l2=l2, afresh=afresh)

    def set_timer(self, connection: Connection, deadline: float) -> None:
        """Whoever carries `connection` wants to be asked at `deadline` (seconds)."""
        self._host.timers.set(connection, deadline)

    def rearm(self, connection: Connection) -> None:
        """The timers of `connection` are its own again, whatever was armed for whoever carried it."""
        self._host.rearm(connection)

    def timer_of(self, connection: Connection) -> float:
        """When the timer of `connection` expires (seconds), `NEVER` if it is not armed."""
        deadline = self._host.timers.get(connection)
        return NEVER if deadline is None else deadline

    def set_train_limit(self, size: int | None) -> None:
        """TCP sends at most `size` bytes in one piece, but may send two segments: the link has a rate.

        None: it has none, and the pieces are as large as can be.
        """
        self._host.set_train_limit(size)

    # an accelerator

    def set_accelerator(self, accelerator: Accelerator | None) -> None:
        """Whoever opens connections of its own from now on."""
        self._host.accelerator = accelerator
        if accelerator is not None:
            for table in (self.connections, self.requests):
                for key in table:
                    accelerator.claim(key, 1)

    def set_reserved(self, count: int) -> None:
        """So many connections are the accelerator's, and not in `connections`."""
        self._host.reserved = count

    def count_past(
        self, connections: int, bytes_in: int, bytes_out: int, segments_in: int, segments_out: int
    ) -> None:
        """So many of its connections are over."""
        self._host.add_past(connections, bytes_in, bytes_out, segments_in, segments_out)

    def reopen(self, syn: bytes, now: float) -> TcpRequest:
        """The request that `syn`, an IP packet that came at `now`, made; nobody is told of it.

        Raises:
            BadPacket: it is none.
        """
        header = self.ip.receive(syn, 0, now)
        if header is None:
            raise BadPacket(DropReason.TCP_BAD_FLAGS)
        return self._opening.reopened(header, tcp_header.parse(header.payload), now)

    def accept_at(self, request: TcpRequest, now: float, *, answered: bool) -> Connection:
        """`accept` as it was at `now`, with the SYN-ACK sent if it is `answered`. The stack's clock stays."""
        return self._opening.accept_at(request, now, answered=answered)

    def adopt_all(self) -> None:
        """Have all connections here that there are. Wake whoever drives the stack."""
        if self._host.accelerator is not None:
            self._host.accelerator.adopt_all(self.now)

    # TCP

    def accept(self, request: TcpRequest, now: float) -> Connection:
        """Answer `request` by SYN-ACK. Raises `LocalError` if it was answered already."""
        return self._opening.accept(request, now)

    def reset(self, request: TcpRequest, now: float) -> None:
        """Answer `request` by RST: connection refused."""
        self._opening.reset(request, now)

    def unreachable(self, request: TcpRequest, kind: IcmpErrorKind, now: float) -> None:
        """Answer `request` by an ICMP error."""
        self._opening.unreachable(request, kind, now)

    def discard(self, request: TcpRequest) -> None:
        """Leave `request` unanswered; the retransmission of its SYN becomes a new one."""
        self._opening.discard(request)

    def connect(
        self, local: bytes, local_port: int, remote: bytes, remote_port: int, now: float
    ) -> Connection:
        """Open a connection to the guest.

        Raises:
            LocalError: the connection exists, the table is full, or `remote` is no single host (MUST-46).
        """
        return self._opening.connect(local, local_port, remote, remote_port, now)

    def tcp_statistics(self) -> TcpStatistics:
        """What all connections have done since the beginning."""
        return self._host.statistics()

    # datagrams and ICMP

    def send_udp(
        self,
        src: bytes,
        src_port: int,
        dst: bytes,
        dst_port: int,
        payload: Buffer,
        now: float,
        *,
        hop_limit: int = 64,
        traffic_class: int = 0,
        mac: bytes | None = None,
    ) -> None:
        """Send a datagram to the guest; it is fragmented if it must be. `payload` is not copied.

        `mac`: whose it is, for a guest that has no address yet.
        """
        self._network.send(
            src,
            dst,
            UDP,
            udp.emit(src, src_port, dst, dst_port, len(payload)),
            (payload,),
            now,
            csum_offset=udp.CSUM_OFFSET,
            hop_limit=hop_limit,
            traffic_class=traffic_class,
            dont_fragment=False,
            mac=mac,
        )

    def send_icmp_error(
        self, quote: Buffer, kind: IcmpErrorKind, now: float, *, mtu: int = 0, source: bytes | None = None
    ) -> None:
        """Tell the sender of the packet that begins with `quote` what became of it.

        Nothing is sent where RFC 1122 3.2.2 or RFC 4443 2.4 forbid it or the rate limit is reached (counted).
        `source` is the router that says so; by default an own address.
        """
        self._icmp.send_error(quote, kind, now, mtu=mtu, source=source)

    def send_echo_reply(
        self, request: EchoRequest, payload: Buffer, now: float, *, hop_limit: int = 64
    ) -> None:
        """Answer `request` with `payload`, from the address that it asked."""
        self._icmp.send_echo_reply(request, payload, now, hop_limit=hop_limit)
