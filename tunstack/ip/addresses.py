"""IP addresses as the stack carries them: 4 or 16 bytes, in network order.

Text exists at the edges only. Every predicate takes the bytes of either family and is
literal: an IPv4-mapped IPv6 address (::ffff:a.b.c.d) is not judged by what it maps to.
Whoever decides on what a mapped address would reach calls `unmap` first.
"""

from __future__ import annotations

import ipaddress

UNSPECIFIED_V4 = bytes(4)
BROADCAST_V4 = b"\xff\xff\xff\xff"
UNSPECIFIED_V6 = bytes(16)
LOOPBACK_V6 = bytes(15) + b"\x01"

_MAPPED = bytes(10) + b"\xff\xff"


def parse_address(text: str) -> bytes:
    """The bytes (4 or 16) of an address in text.

    Raises:
        ValueError: it is no address, or it names a zone (fe80::1%eth0).
    """
    if "%" in text:
        raise ValueError(f"{text!r} names a zone; an address without one is needed")
    return ipaddress.ip_address(text).packed


def format_address(address: bytes) -> str:
    """The address in text; IPv6 as RFC 5952 wants it.

    Raises:
        ValueError: it has neither 4 nor 16 bytes.
    """
    return str(ipaddress.ip_address(bytes(address)))


def is_unspecified(address: bytes) -> bool:
    """0.0.0.0 or ::"""
    return address in (UNSPECIFIED_V4, UNSPECIFIED_V6)


def is_this_network(address: bytes) -> bool:
    """0.0.0.0/8 or :: (RFC 1122 3.2.1.3 a and b)."""
    return address[0] == 0 if len(address) == 4 else address == UNSPECIFIED_V6


def is_loopback(address: bytes) -> bool:
    """127.0.0.0/8 or ::1"""
    return address[0] == 127 if len(address) == 4 else address == LOOPBACK_V6


def is_multicast(address: bytes) -> bool:
    """224.0.0.0/4 or ff00::/8"""
    return address[0] & 0xF0 == 0xE0 if len(address) == 4 else address[0] == 0xFF


def is_broadcast(address: bytes) -> bool:
    """255.255.255.255; the broadcast address of a subnet is `Prefix.broadcast`."""
    return address == BROADCAST_V4


def is_link_local(address: bytes) -> bool:
    """169.254.0.0/16 or fe80::/10"""
    if len(address) == 4:
        return address[:2] == b"\xa9\xfe"
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def is_v4_mapped(address: bytes) -> bool:
    """::ffff:0:0/96"""
    return len(address) == 16 and address[:12] == _MAPPED


def unmap(address: bytes) -> bytes:
    """The IPv4 address inside an IPv4-mapped one; any other address as it is."""
    return address[12:] if is_v4_mapped(address) else address


def is_single_host(address: bytes) -> bool:
    """Whether the address names one host on a network, as the source of a packet must.

    RFC 1122 3.2.1.3, 3.2.2, RFC 4291 2.5.2, 2.5.3, 2.7: not this network, not loopback, not multicast, not
    broadcast; and not IPv4-mapped, which belongs on no wire (RFC 6890 2.2.3).
    """
    if len(address) == 4:
        first = address[0]
        return not (first == 0 or first == 127 or 224 <= first <= 239 or address == BROADCAST_V4)
    first = address[0]
    return first != 0xFF and (
        first != 0 or not (address in (UNSPECIFIED_V6, LOOPBACK_V6) or address[:12] == _MAPPED)
    )


def link_local(mac: bytes) -> bytes:
    """The link-local IPv6 address of the interface with this MAC (RFC 4291 2.5.6, appendix A)."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


class Prefix:
    """A network: its address, with the host bits zero, and the length of its prefix in bits."""

    __slots__ = ("_mask", "_size", "_value", "length", "network")

    network: bytes
    length: int

    def __init__(self, network: bytes, length: int) -> None:
        """Raises ValueError if the length does not fit or host bits are set."""
        size = len(network)
        if size not in (4, 16):
            raise ValueError(f"an address has 4 or 16 bytes, not {size}")
        if not 0 <= length <= 8 * size:
            raise ValueError(f"a prefix of this family has 0 to {8 * size} bits, not {length}")
        host_bits = 8 * size - length
        self.network = bytes(network)
        self.length = length
        self._size = size
        self._value = int.from_bytes(network, "big")
        self._mask = ((1 << length) - 1) << host_bits
        if self._value & ~self._mask:
            raise ValueError(f"{format_address(self.network)}/{length} has host bits set")

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """From "10.0.2.0/24"; without a length it is a single address.

        Raises:
            ValueError: it is no prefix, or has host bits set.
        """
        address, slash, length = text.partition("/")
        network = parse_address(address)
        if not slash:
            return cls(network, 8 * len(network))
        if not (length.isascii() and length.isdigit()):
            raise ValueError(f"{length!r} is not the length of a prefix")
        return cls(network, int(length))

    @classmethod
    def of(cls, address: bytes, length: int) -> Prefix:
        """The prefix of this length that `address` lies in."""
        host_bits = 8 * len(address) - length
        if host_bits < 0:
            raise ValueError(f"a prefix of this family has no {length} bits")
        value = int.from_bytes(address, "big") >> host_bits << host_bits
        return cls(value.to_bytes(len(address), "big"), length)

    def contains(self, address: bytes) -> bool:
        """Whether the address lies in it; one of the other family never does."""
        return int.from_bytes(address, "big") & self._mask == self._value and len(address) == self._size

    @property
    def broadcast(self) -> bytes | None:
        """The directed broadcast address; None for IPv6 and for /31 and /32 (RFC 3021)."""
        if self._size != 4 or self.length > 30:
            return None
        return (self._value | (~self._mask & 0xFFFFFFFF)).to_bytes(4, "big")

    def address(self, index: int) -> bytes:
        """The address `index` places after the network's; negative counts from the end.

        Raises:
            ValueError: it lies outside.
        """
        span = 1 << (8 * self._size - self.length)
        if not -span <= index < span:
            raise ValueError(f"{self} has no address number {index}")
        return (self._value + index % span).to_bytes(self._size, "big")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prefix):
            return NotImplemented
        return self.network == other.network and self.length == other.length

    def __hash__(self) -> int:
        return hash((self.network, self.length))

    def __str__(self) -> str:
        return f"{format_address(self.network)}/{self.length}"

    def __repr__(self) -> str:
        return f"<Prefix {self}>"
