"""What the stack knows of a received IP packet: one class for both families."""

from __future__ import annotations

QUOTE_BYTES = 576
"""Most bytes of a packet kept for the quote of an ICMP error (RFC 1812 4.3.2.3)."""
QUOTE_BYTES_V6 = 1232
"""The same for ICMPv6: with two headers they make 1280 bytes (RFC 4443 2.4 c)."""

ICMP = 1
TCP = 6
UDP = 17
ICMPV6 = 58


class IpHeader:
    """A received IP packet, checked.

    All views are borrowed from the buffer that was parsed, except after reassembly.

    Attributes:
        version: 4 or 6.
        src, dst: addresses, 4 or 16 bytes.
        protocol: what the payload is (the last next header of IPv6).
        hop_limit: hops left (TTL).
        traffic_class: DSCP and ECN, one byte.
        header_length: bytes from the start of the packet to the payload.
        total_length: bytes of the packet, link padding excluded.
        ident: identification, 16 bits (32 in IPv6; 0 without a fragment header).
        dont_fragment, more_fragments: the flags; in IPv6 no router may fragment, so the first is set.
        fragment_offset: place of the payload in the datagram, in bytes.
        options: whether the header carries any.
        payload: the layer-4 bytes, exactly.
        packet: from the IP header on, for quotes; ends where the payload ends.
    """

    __slots__ = (
        "dont_fragment",
        "dst",
        "fragment_offset",
        "header_length",
        "hop_limit",
        "ident",
        "more_fragments",
        "options",
        "packet",
        "payload",
        "protocol",
        "src",
        "total_length",
        "traffic_class",
        "version",
    )

    def __init__(
        self,
        version: int,
        src: bytes,
        dst: bytes,
        protocol: int,
        hop_limit: int,
        traffic_class: int,
        header_length: int,
        total_length: int,
        ident: int,
        dont_fragment: bool,
        more_fragments: bool,
        fragment_offset: int,
        options: bool,
        payload: memoryview,
        packet: memoryview,
    ) -> None:
        self.version = version
        self.src = src
        self.dst = dst
        self.protocol = protocol
        self.hop_limit = hop_limit
        self.traffic_class = traffic_class
        self.header_length = header_length
        self.total_length = total_length
        self.ident = ident
        self.dont_fragment = dont_fragment
        self.more_fragments = more_fragments
        self.fragment_offset = fragment_offset
        self.options = options
        self.payload = payload
        self.packet = packet

    def quote(self) -> bytes:
        """A copy of the packet's beginning, at most `QUOTE_BYTES` or `QUOTE_BYTES_V6`, for an ICMP error."""
        return bytes(self.packet[: QUOTE_BYTES if self.version == 4 else QUOTE_BYTES_V6])

    def __repr__(self) -> str:
        return (
            f"<IpHeader v{self.version} {self.src.hex()} > {self.dst.hex()} protocol {self.protocol} "
            f"length {self.total_length} offset {self.fragment_offset}{'+' if self.more_fragments else ''}>"
        )
