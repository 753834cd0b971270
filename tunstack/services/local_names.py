"""The names that the gateway answers itself: its own zone, hosts that were added, and the way back.

A name is a tuple of its labels in lower case without the root, `(b"gateway", b"tunstack",
b"internal")`, which compares and hashes as DNS names do (RFC 4343) and needs no DNS library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

ZONE = "tunstack.internal"
GATEWAY_NAME = "gateway.tunstack.internal"
HOST_NAME = "host.tunstack.internal"

MAX_ADDRESSES = 256
"""Addresses of one name: 7 KiB of AAAA records, well within one message."""

Labels = tuple[bytes, ...]


def parse_name(text: str) -> Labels:
    """The labels of a host name as an operator writes it, a final dot allowed.

    Raises ValueError, with a sentence, if it cannot be a name (RFC 1035 section 2.3.4).
    """
    try:
        plain = text.removesuffix(".").encode("ascii" if text.isascii() else "idna").lower()
    except UnicodeError as error:
        raise ValueError(f"{text!r} is not a host name: {error}") from None
    labels = tuple(plain.split(b"."))
    if not all(0 < len(label) <= 63 for label in labels):
        raise ValueError(f"{text!r} is not a host name: a label has between 1 and 63 characters")
    if len(plain) > 253:
        raise ValueError(f"{text!r} is not a host name: it is longer than 253 characters")
    if any(byte <= 0x20 or byte >= 0x7F for byte in plain):
        raise ValueError(f"{text!r} is not a host name: it has a space or control character")
    return labels


def reverse_name(address: bytes) -> Labels:
    """The name under in-addr.arpa or ip6.arpa for 4 or 16 bytes (RFC 1035 3.5, RFC 3596 2.5)."""
    if len(address) == 4:
        return (*(b"%d" % byte for byte in reversed(address)), b"in-addr", b"arpa")
    return (*(b"%c" % digit for digit in reversed(address.hex().encode())), b"ip6", b"arpa")


@dataclasses.dataclass(frozen=True, slots=True)
class LocalName:
    """What is known of one name. Without any data it is NODATA, unless it does not exist.

    `zone` is the own zone that it lies in, for the SOA of a negative answer.
    """

    exists: bool = True
    addresses: tuple[bytes, ...] = ()
    pointer: Labels = ()
    zone: Labels = ()


class LocalNames:
    """An unchanging table of own names.

    `hosts` maps names to addresses of 4 or 16 bytes; a name with none exists, without data.
    All of each zone in `zones` is the gateway's: what is not in `hosts` does not exist.
    Raises ValueError for what is no name or address.
    """

    def __init__(self, hosts: Mapping[str, Sequence[bytes]], zones: Iterable[str] = (ZONE,)) -> None:
        self._zones = tuple(parse_name(zone) for zone in zones)
        self._addresses: dict[Labels, tuple[bytes, ...]] = {}
        self._pointers: dict[Labels, Labels] = {}
        self._parents: set[Labels] = set(self._zones)
        for text, addresses in hosts.items():
            self._add(parse_name(text), addresses)

    def _add(self, name: Labels, addresses: Sequence[bytes]) -> None:
        for address in addresses:
            if len(address) not in (4, 16):
                raise ValueError("an address has 4 or 16 bytes")
            self._pointers.setdefault(reverse_name(address), name)
        # Names that differ in case only are one; dict.fromkeys drops addresses given twice.
        merged = tuple(dict.fromkeys((*self._addresses.get(name, ()), *addresses)))
        if len(merged) > MAX_ADDRESSES:
            raise ValueError(f"a host name can have at most {MAX_ADDRESSES} addresses")
        self._addresses[name] = merged
        zone = self._zone_of(name)
        for start in range(1, len(name) - len(zone) if zone else 0):
            self._parents.add(name[start:])

    def _zone_of(self, name: Labels) -> Labels:
        return next((zone for zone in self._zones if name[-len(zone) :] == zone), ())

    def find(self, name: Labels) -> LocalName | None:
        """What to answer for `name` (lower case), or None if somebody else has to be asked."""
        zone = self._zone_of(name)
        addresses = self._addresses.get(name)
        pointer = self._pointers.get(name, ())
        if addresses is not None or pointer:
            return LocalName(True, addresses or (), pointer, zone)
        if not zone:
            return None
        return LocalName(name in self._parents, zone=zone)
