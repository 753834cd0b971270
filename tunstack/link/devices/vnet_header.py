"""The virtio-net header: what a device and the other end tell each other about a packet's offloads.

10 bytes in front of the packet (virtio 1.2, 5.1.6; native byte order, as the kernel's tun driver has it by
default and the fast path everywhere):

    u8 flags, u8 gso_type, u16 hdr_len, u16 gso_size, u16 csum_start, u16 csum_offset
"""

from __future__ import annotations

import struct

from tunstack.errors import BadPacket, DropReason
from tunstack.limits import MAX_FRAME
from tunstack.packet import Checksum, GsoType, Packet

NEEDS_CSUM = 1
DATA_VALID = 2
GSO_ECN = 0x80

VNET_HEADER = struct.Struct("=BBHHHH")
VNET_LENGTH = VNET_HEADER.size

_PARTIAL = int(Checksum.PARTIAL)
_VALID = int(Checksum.VALID)
_UNKNOWN = int(Checksum.UNKNOWN)
_TCPV4 = int(GsoType.TCPV4)
_TCPV6 = int(GsoType.TCPV6)
_GSO_TYPES = frozenset((_TCPV4, _TCPV6, int(GsoType.UDP_L4)))
_TCP_FLAGS = 13
_CWR = 0x80


def parse_frame(frame: memoryview, otherwise: int = _UNKNOWN) -> Packet:
    """The packet of `frame`, virtio-net header first, as a view of it; `BadPacket` if there is none.

    Trains and checksums keep what the header says of them; `csum_start` and `csum_offset` are 0 unless the
    checksum is PARTIAL. `otherwise`: what is known of a checksum of which the header says nothing.
    """
    count = len(frame)
    if not VNET_LENGTH < count <= VNET_LENGTH + MAX_FRAME:
        raise BadPacket(DropReason.FRAME_TOO_SHORT if count <= VNET_LENGTH else DropReason.FRAME_TOO_LONG)
    flags, gso_type, _, gso_size, csum_start, csum_offset = VNET_HEADER.unpack_from(frame)
    if flags & NEEDS_CSUM:
        checksum = _PARTIAL
        if csum_start + csum_offset + 2 > count - VNET_LENGTH:
            raise BadPacket(DropReason.BAD_VNET_HEADER)
    else:
        checksum = _VALID if flags & DATA_VALID else otherwise
        csum_start = csum_offset = 0
    if gso_type:
        gso_type &= ~GSO_ECN
        if gso_type not in _GSO_TYPES or not gso_size:
            raise BadPacket(DropReason.BAD_VNET_HEADER)
    else:
        gso_size = 0
    return Packet(frame[VNET_LENGTH:], (), gso_size, gso_type, checksum, csum_start, csum_offset)


def pack_header(packet: Packet) -> bytes:
    """The header of `packet`; struct.error or IndexError for metadata that none can tell."""
    start, offset = packet.csum_start, packet.csum_offset
    gso_type = packet.gso_type
    # hdr_len is a hint, and at most what the first view holds.
    header_length = len(packet.head) if packet.payload else start + offset + 2
    if gso_type in (_TCPV4, _TCPV6) and packet.head[start + _TCP_FLAGS] & _CWR:
        gso_type |= GSO_ECN  # RFC 3168 6.1.2: only the first segment may carry CWR
    flags = NEEDS_CSUM if packet.checksum == _PARTIAL else 0
    return VNET_HEADER.pack(flags, gso_type, header_length, packet.gso_size, start, offset)
