"""UDP datagrams (RFC 768, RFC 1122 4.1): read and written, for both families."""

from __future__ import annotations

import struct

from tunstack.errors import BadPacket, DropReason, LocalError
from tunstack.ip.header import QUOTE_BYTES, QUOTE_BYTES_V6, UDP, IpHeader
from tunstack.ip.ipv4 import is_right, pseudo_header_sum
from tunstack.packet import UNVERIFIED, Buffer, Checksum

HEADER_LENGTH = 8
CSUM_OFFSET = 6
"""Where the checksum is in the header: the `csum_offset` of `IpLayer.build`."""
MAX_LENGTH = 65535

_header = struct.Struct("!HHHH")


class UdpDatagram:
    """A received datagram.

    Attributes:
        src, src_port, dst, dst_port: as received; a source port of 0 means that no answer is wanted.
        payload: borrowed; whoever keeps it copies.
        hop_limit, traffic_class, dont_fragment: of its IP header.
        gso_size: if not 0, `payload` is a train of datagrams of this many bytes each, the last maybe shorter.
        quote: the packet's beginning, for ICMP errors; borrowed.
    """

    __slots__ = (
        "dont_fragment",
        "dst",
        "dst_port",
        "gso_size",
        "hop_limit",
        "payload",
        "quote",
        "src",
        "src_port",
        "traffic_class",
    )

    def __init__(
        self,
        src: bytes,
        src_port: int,
        dst: bytes,
        dst_port: int,
        payload: Buffer,
        hop_limit: int,
        traffic_class: int,
        dont_fragment: bool,
        gso_size: int,
        quote: Buffer,
    ) -> None:
        self.src = src
        self.src_port = src_port
        self.dst = dst
        self.dst_port = dst_port
        self.payload = payload
        self.hop_limit = hop_limit
        self.traffic_class = traffic_class
        self.dont_fragment = dont_fragment
        self.gso_size = gso_size
        self.quote = quote

    def pieces(self) -> list[memoryview]:
        """The payloads of the datagrams of a train, or of the one that there is; borrowed."""
        payload = memoryview(self.payload)
        size = self.gso_size or max(1, len(payload))
        return [payload[start : start + size] for start in range(0, max(1, len(payload)), size)]

    def __repr__(self) -> str:
        return (
            f"<UdpDatagram {self.src.hex()}:{self.src_port} > {self.dst.hex()}:{self.dst_port} "
            f"with {len(self.payload)} bytes>"
        )


def parse(header: IpHeader, state: int = Checksum.UNKNOWN) -> UdpDatagram:
    """The datagram in a packet whose protocol is UDP.

    What follows its own length is cut. A destination port of 0, which nobody can listen on, is an
    error. `gso_size` is left 0.

    Args:
        state: what is known of the packet's checksum, a `Checksum`. A checksum of 0 means none in
            IPv4 and is an error in IPv6 (RFC 8200 8.1).

    Raises:
        BadPacket: BAD_UDP or BAD_UDP_CHECKSUM.
    """
    data = header.payload
    if len(data) < HEADER_LENGTH:
        raise BadPacket(DropReason.BAD_UDP)
    src_port, dst_port, length, checksum = _header.unpack_from(data)
    if not HEADER_LENGTH <= length <= len(data) or dst_port == 0:
        raise BadPacket(DropReason.BAD_UDP)
    if state in UNVERIFIED and (checksum or header.version != 4):
        start = pseudo_header_sum(header.src, header.dst, UDP, length)
        if checksum == 0 or not is_right(data[:length], CSUM_OFFSET, start, state):
            raise BadPacket(DropReason.BAD_UDP_CHECKSUM)
    return UdpDatagram(
        header.src,
        src_port,
        header.dst,
        dst_port,
        data[HEADER_LENGTH:length],
        header.hop_limit,
        header.traffic_class,
        header.dont_fragment,
        0,
        header.packet[: QUOTE_BYTES if header.version == 4 else QUOTE_BYTES_V6],
    )


def emit(src: bytes, src_port: int, dst: bytes, dst_port: int, payload_length: int) -> bytes:
    """The 8 bytes before `payload_length` bytes, with a PARTIAL checksum (`CSUM_OFFSET`).

    Raises:
        LocalError: the length or a port does not fit its field.
    """
    length = HEADER_LENGTH + payload_length
    if not HEADER_LENGTH <= length <= MAX_LENGTH or not (0 <= src_port < 65536 and 0 <= dst_port < 65536):
        raise LocalError(f"no UDP header for ports {src_port}, {dst_port} and {payload_length} bytes")
    return _header.pack(src_port, dst_port, length, pseudo_header_sum(src, dst, UDP, length))
