"""Received TCP segments: checked, and handed to the connection that they are for.

What belongs to no connection is the beginning of one, the end of one that was only asked for, or reset
(RFC 9293 3.10.7.1). A SYN may take over a connection in TIME-WAIT.
"""

from __future__ import annotations

from tunstack.errors import BadPacket, DropCounters, DropReason
from tunstack.ip import ipv4
from tunstack.ip.addresses import is_broadcast, is_multicast
from tunstack.ip.header import TCP, IpHeader
from tunstack.packet import UNVERIFIED, Packet
from tunstack.stack.connections import Connections
from tunstack.stack.network import Network
from tunstack.stack.opening import Opening, send_reset
from tunstack.tcp import header as tcp_header
from tunstack.tcp.connection import Connection
from tunstack.tcp.ecn import CONGESTION_EXPERIENCED
from tunstack.tcp.header import ACK, FIN, RST, SYN, Segment
from tunstack.tcp.listener import FlowKey
from tunstack.tcp.seq import add, lt
from tunstack.tcp.states import State

_FLAGS_THAT_MATTER = SYN | ACK | RST | FIN


class SegmentInput:
    """Finds for each segment who takes it."""

    __slots__ = ("_connections", "_drops", "_network", "_opening")

    def __init__(
        self, network: Network, connections: Connections, opening: Opening, drops: DropCounters
    ) -> None:
        self._network = network
        self._connections = connections
        self._opening = opening
        self._drops = drops

    def receive(self, header: IpHeader, packet: Packet, now: float) -> None:
        """Take the segment in `packet`; BadPacket for what is dropped."""
        payload = header.payload
        if packet.checksum in UNVERIFIED:
            start = ipv4.pseudo_header_sum(header.src, header.dst, TCP, len(payload))
            if not ipv4.is_right(payload, tcp_header.CHECKSUM_OFFSET, start, packet.checksum):
                raise BadPacket(DropReason.BAD_TCP_CHECKSUM)
        segment = tcp_header.parse(payload)
        segment.marked = header.traffic_class & 3 == CONGESTION_EXPERIENCED
        gso_size = packet.gso_size
        if gso_size:
            size = len(segment.payload)
            if size > gso_size:
                segment.segments = -(-size // gso_size)
        key = header.src + header.dst + bytes(payload[:4])
        connection = self._connections.find(key, now)
        if connection is None:
            self._receive_unknown(header, segment, key, now)
            return
        if connection.state is not State.TIME_WAIT or not _reopens(connection, segment):
            connection.receive(segment, now)
        else:
            connection.retire()
            self._receive_unknown(header, segment, key, now, connection.hot.snd_nxt)

    def _receive_unknown(
        self, header: IpHeader, segment: Segment, key: FlowKey, now: float, above: int | None = None
    ) -> None:
        """A segment without a connection: a SYN is a request, all else is reset (RFC 9293 3.10.7.1).

        `above` is what the ISN of the connection must exceed that a SYN asks for.
        """
        dst = header.dst
        if is_multicast(dst) or is_broadcast(dst) or dst in self._network.ip.broadcasts:
            raise BadPacket(DropReason.BAD_DESTINATION)  # MUST-57
        if segment.flags & _FLAGS_THAT_MATTER == SYN:
            self._opening.asked(header, segment, key, now, above)
        elif segment.flags & RST:
            self._opening.withdrawn(segment, key)
        else:
            self._drops.add(DropReason.TCP_NO_CONNECTION)
            # The reset takes its numbers from what it answers.
            local, remote = (dst, segment.dst_port), (header.src, segment.src_port)
            if segment.flags & ACK:
                send_reset(self._network, *local, *remote, segment.ack, None, now)
            else:
                send_reset(self._network, *local, *remote, 0, add(segment.seq, segment.length), now)


def _reopens(connection: Connection, segment: Segment) -> bool:
    """A SYN may take over a TIME-WAIT if its numbers or timestamps are newer (RFC 6191, MAY-2)."""
    if segment.flags & _FLAGS_THAT_MATTER != SYN:
        return False
    hot = connection.hot
    if hot.timestamps and segment.ts_val is not None and segment.ts_val != hot.ts_recent:
        return lt(hot.ts_recent, segment.ts_val)
    return lt(hot.rcv_nxt, segment.seq)
