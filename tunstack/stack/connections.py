"""The connections of one stack, and what each of them asks of it (`tcp.host.ConnectionHost`).

Theory of operation. A connection that has something to send marks itself and is flushed at the end of the
batch; one that has something to tell becomes an event, once; one that holds views of the device's buffers is
settled before these are reused. The timers of all are in one heap. The table is bounded by
`limits.connections`: when it is full, the oldest TIME-WAIT gives way.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Protocol

from tunstack.errors import BadPacket, DropCounters
from tunstack.ip import ipv4, ipv6, layer
from tunstack.ip.header import TCP
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.limits import PAGE_SIZE, Limits
from tunstack.packet import GsoType, Packet
from tunstack.stack.events import Event
from tunstack.stack.network import Network
from tunstack.tcp import congestion as congestion_control
from tunstack.tcp import header as tcp_header
from tunstack.tcp.challenge import ChallengeLimiter
from tunstack.tcp.connection import Connection
from tunstack.tcp.ecn import ECT_0
from tunstack.tcp.endpoint import Endpoint
from tunstack.tcp.hot import NEVER
from tunstack.tcp.isn import SequenceSource
from tunstack.tcp.listener import FlowKey
from tunstack.tcp.pages import PagePool
from tunstack.tcp.receive import ReceiveAccount
from tunstack.tcp.seq import add, le
from tunstack.tcp.statistics import TcpStatistics
from tunstack.timers import TimerHeap

HEADERS_LENGTH = {
    4: ipv4.HEADER_LENGTH + tcp_header.HEADER_LEN,
    16: ipv6.HEADER_LENGTH + tcp_header.HEADER_LEN,
}
"""Bytes of both headers without options, by length of address."""
_ISN_STEP = 1 << 16
"""How far above the numbers of a connection in TIME-WAIT its successor starts at least (MAY-2)."""
_NO_TRAIN_LIMIT = 0xFFFF
"""Bytes: more than any super-segment has."""


def flow_key(remote: bytes, remote_port: int, local: bytes, local_port: int) -> FlowKey:
    """What a connection is found by: the four-tuple as it stands in a packet from the guest."""
    return remote + local + remote_port.to_bytes(2, "big") + local_port.to_bytes(2, "big")


class Accelerator(Protocol):
    """Who opens connections of its own, of which the stack knows nothing until it has to."""

    def adopt(self, key: FlowKey, now: float) -> None:
        """Let the stack have the connection, or the request, of `key`, if there is one."""
        ...

    def adopt_all(self, now: float) -> None:
        """Let the stack have all of them."""
        ...

    def claim(self, key: FlowKey, by: int) -> None:
        """The stack has one more connection or request of `key` (1), or one less (-1)."""
        ...


class Connections:
    """All connections, by key; the host of each of them.

    Attributes:
        accelerator: who opens connections besides.
        reserved: how many those are.
        now: the time of the call that is being served, in seconds.
        by_key: the table.
        sequence: gives initial sequence numbers and timestamp offsets.
        timers: at most one deadline for each connection.
    """

    __slots__ = (
        "_borrowers",
        "_challenges",
        "_events",
        "_marked",
        "_network",
        "_past",
        "_time_wait",
        "_train_limit",
        "accelerator",
        "by_key",
        "congestion",
        "drops",
        "ecn",
        "limits",
        "now",
        "receive_account",
        "receive_pool",
        "reserved",
        "send_pool",
        "sequence",
        "timers",
    )

    def __init__(
        self,
        network: Network,
        events: list[Event],
        rng: random.Random,
        *,
        congestion: str,
        ecn: bool,
        limits: Limits,
        drops: DropCounters,
    ) -> None:
        self._network = network
        self._events = events
        self.congestion = congestion_control.ALGORITHMS[congestion]
        self.ecn = ecn
        self.limits = limits
        self.drops = drops
        self.now = 0.0
        self.send_pool = PagePool(limits.page_pool)
        # Each connection's kept bytes may end in a page that is partly filled.
        self.receive_pool = PagePool(limits.receive_memory + 2 * PAGE_SIZE * (limits.connections + 1))
        self.receive_account = ReceiveAccount(limits.receive_memory)
        self.by_key: dict[FlowKey, Connection] = {}
        self.accelerator: Accelerator | None = None
        self.reserved = 0
        self.sequence = SequenceSource(rng.randbytes(32))
        self.timers: TimerHeap[Connection] = TimerHeap()
        self._time_wait: dict[FlowKey, Connection] = {}
        self._past = TcpStatistics()
        """Of the connections that are over."""
        self._challenges = ChallengeLimiter(limits.challenge_acks_per_second, rng)
        self._train_limit = _NO_TRAIN_LIMIT
        self._marked: list[Connection] = []
        self._borrowers: list[Connection] = []

    # the table

    def find(self, key: FlowKey, now: float) -> Connection | None:
        """The connection of `key`, which nobody else carries any more."""
        connection = self.by_key.get(key)
        if connection is not None:
            if connection.lease is not None:
                connection.lease.take_back(now)
        elif self.accelerator is not None:
            self.accelerator.adopt(key, now)
            connection = self.by_key.get(key)
        return connection

    def claim(self, key: FlowKey, by: int) -> None:
        """There is one more connection or request of `key` (1), or one less (-1)."""
        if self.accelerator is not None:
            self.accelerator.claim(key, by)

    def make_room(self) -> bool:
        """Whether one more connection may exist; the oldest TIME-WAIT gives way."""
        if len(self.by_key) + self.reserved < self.limits.connections:
            return True
        for connection in self._time_wait.values():
            connection.retire()
            return True
        return False

    def make(
        self,
        key: FlowKey,
        local: bytes,
        local_port: int,
        remote: bytes,
        remote_port: int,
        now: float,
        above: int | None = None,
    ) -> Connection:
        """A connection in CLOSED, in the table. Its ISN lies well above `above`."""
        sequence = self.sequence
        iss = sequence.isn(local, local_port, remote, remote_port, now)
        if above is not None and le(iss, above):
            iss = add(above, _ISN_STEP)
        connection = Connection(
            self,
            key,
            local,
            local_port,
            remote,
            remote_port,
            iss=iss,
            path_mss=self._network.mtu - HEADERS_LENGTH[len(local)],
            ts_offset=sequence.timestamp_offset(local, local_port, remote, remote_port),
            pseudo_sum=ipv4.pseudo_header_sum(local, remote, TCP, 0),
            now=now,
        )
        connection.sender.train_limit = self._train_limit
        self.by_key[key] = connection
        self.claim(key, 1)
        return connection

    def statistics(self) -> TcpStatistics:
        """What all connections have done since the beginning."""
        if self.accelerator is not None:
            self.accelerator.adopt_all(self.now)
        statistics = dataclasses.replace(self._past)
        for connection in self.by_key.values():
            statistics.add(connection)
        return statistics

    def add_past(
        self, connections: int, bytes_in: int, bytes_out: int, segments_in: int, segments_out: int
    ) -> None:
        """So many connections are over that were never here."""
        past = self._past
        past.connections += connections
        past.bytes_in += bytes_in
        past.bytes_out += bytes_out
        past.segments_in += segments_in
        past.segments_out += segments_out

    def set_train_limit(self, limit: int | None) -> None:
        """No connection sends more than `limit` bytes in one piece, though two segments it may."""
        self._train_limit = size = _NO_TRAIN_LIMIT if limit is None else limit
        for connection in self.by_key.values():
            if connection.lease is not None:
                connection.lease.take_back(self.now)
            connection.sender.train_limit = size

    def next_hop_failed(self, packet: Packet, now: float) -> None:
        """Nobody on the link has the destination: a connection that is being opened ends at once."""
        try:
            header = layer.parse_quote(packet.head)
            if header.protocol == TCP:
                segment = tcp_header.parse(memoryview(packet.head)[header.header_length :])
                key = flow_key(header.dst, segment.dst_port, header.src, segment.src_port)
                connection = self.find(key, now)
                if connection is not None:
                    connection.on_unreachable(segment.seq, 0, now, IcmpErrorKind.HOST_UNREACHABLE)
        except BadPacket as error:
            self.drops.add(error.reason)

    # output and time

    def flush(self, now: float) -> None:
        """Send what all that were touched have to send."""
        while self._marked:
            marked, self._marked = self._marked, []
            for connection in marked:
                connection.flush(now)
                self.rearm(connection)

    def settle(self) -> None:
        """Copy what is still borrowed from the buffers of the device."""
        if self._borrowers:
            for connection in self._borrowers:
                connection.settle()
            self._borrowers = []

    def handle_timeout(self, now: float) -> None:
        """Run the timers that are due."""
        for connection in self.timers.expired(now):
            if connection.lease is not None and (due := connection.lease.expired(now)) is not None:
                if due != NEVER:
                    self.timers.set(connection, due)
                continue
            connection.handle_timeout(now)
            self.rearm(connection)

    def rearm(self, connection: Connection) -> None:
        """Let the heap have the next time-out of `connection`."""
        deadline = connection.next_timeout()
        if deadline == NEVER:
            self.timers.cancel(connection)
        else:
            self.timers.set(connection, deadline)

    # what a connection asks for (tcp.host.ConnectionHost)

    def mark(self, connection: Endpoint) -> None:
        """`connection` wants to be flushed."""
        assert isinstance(connection, Connection)
        self._marked.append(connection)

    def notify(self, connection: Endpoint) -> None:
        """`connection` becomes an event, once until the next `poll_events`."""
        if not connection.is_queued:
            assert isinstance(connection, Connection)
            connection.is_queued = True
            self._events.append(connection)

    def borrowed(self, connection: Endpoint) -> None:
        """`connection` holds views of the device's buffers."""
        assert isinstance(connection, Connection)
        self._borrowers.append(connection)

    def transmit(
        self,
        connection: Endpoint,
        header: bytes,
        payload: list[memoryview],
        gso_size: int,
        ecn_capable: bool = False,
    ) -> None:
        """Send one segment or super-segment of `connection`."""
        network = self._network
        local = connection.local
        gso_type = (GsoType.TCPV4 if len(local) == 4 else GsoType.TCPV6) if gso_size else GsoType.NONE
        for packet in network.ip.build(
            local,
            connection.remote,
            TCP,
            header,
            payload,
            gso_size=gso_size,
            gso_type=gso_type,
            traffic_class=connection.traffic_class | (ECT_0 if ecn_capable else 0),
            csum_offset=tcp_header.CHECKSUM_OFFSET,
        ):
            network.link.send(packet, connection.remote, self.now)

    def challenge_allowed(self, now: float) -> bool:
        """The stack-wide limit of RFC 5961 section 7."""
        return self._challenges.allow(now)

    def time_wait(self, connection: Endpoint) -> None:
        """`connection` entered TIME-WAIT and may be given up when room is needed."""
        assert isinstance(connection, Connection)
        self._time_wait[connection.key] = connection
        self.rearm(connection)

    def closed(self, connection: Endpoint) -> None:
        """`connection` is over."""
        assert isinstance(connection, Connection)
        self._time_wait.pop(connection.key, None)
        if self.by_key.get(connection.key) is connection:
            del self.by_key[connection.key]
            self.claim(connection.key, -1)
            self._past.add(connection)
        self.timers.cancel(connection)
