"""Completing a PARTIAL checksum: the part of `native` that is the same for both twins."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tunstack.errors import LocalError
from tunstack.packet import Buffer, Checksum, Packet

_UDP_CHECKSUM = 6
"""Offset of the checksum field in a UDP header, and in no other header that has PARTIAL checksums."""

_MIN_IP_HEADER = 20


def complete_partial(packet: Packet, ones_sum_views: Callable[[Iterable[Buffer]], int]) -> Packet:
    """See `complete_checksum`; `ones_sum_views` is that of the twin."""
    if packet.checksum != Checksum.PARTIAL:
        return packet
    if packet.gso_size:
        raise LocalError("a train is completed by segment()")
    start, offset = packet.csum_start, packet.csum_offset
    field = start + offset
    if start < _MIN_IP_HEADER or offset < 0 or field + 2 > len(packet.head):
        raise LocalError("csum_start and csum_offset do not lie in the head")
    head = bytearray(packet.head)
    checksum = ~ones_sum_views((memoryview(head)[start:], *packet.payload)) & 0xFFFF
    if offset == _UDP_CHECKSUM and not checksum:
        checksum = 0xFFFF  # RFC 768: zero on the wire means that there is none
    head[field : field + 2] = checksum.to_bytes(2, "big")
    return Packet(bytes(head), packet.payload)
