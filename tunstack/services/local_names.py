"""The names that the gateway answers itself: its own zone, hosts that were added, and the way back.

A name is a tuple of its labels in lower case without the root, `(b"gateway", b"tunstack",
b"internal")`, which compares and hashes as DNS names do (RFC 4343) and needs no DNS library.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

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

    `zone` is the own zone that it lies in, for the SOA of a negative answer. `records` are more
    of its data, each a type and a value as a zone file has them.
    """

    exists: bool = True
    addresses: tuple[bytes, ...] = ()
    pointer: Labels = ()
    zone: Labels = ()
    records: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """A zone that an operator has written down. All of it is the gateway's.

    Attributes:
        name: of the zone.
        hosts: addresses of 4 or 16 bytes by name within the zone; "@" is the zone itself.
        records: more data by name within the zone: types and values as a zone file has them.
        patterns: regular expressions that are looked for in the name within the zone, and addresses of
            what they are found in, the first that is. Guests choose the names: the expressions must not
            take long over any.
        default: addresses of all other names.
    """

    name: str
    hosts: Mapping[str, Sequence[bytes]] = dataclasses.field(default_factory=dict)
    records: Mapping[str, Sequence[tuple[str, str]]] = dataclasses.field(default_factory=dict)
    patterns: Sequence[tuple[str, Sequence[bytes]]] = ()
    default: Sequence[bytes] = ()


class LocalNames:
    """An unchanging table of own names, beside those that `others` finds.

    `hosts` maps names to addresses of 4 or 16 bytes; a name with none exists, without data.
    All of each zone in `zones` is the gateway's: what is not in `hosts` does not exist.
    Raises ValueError for what is no name, address or regular expression.

    Attributes:
        others: finds names that come and go, such as those of guests; they stand behind `hosts`.
    """

    def __init__(self, hosts: Mapping[str, Sequence[bytes]], zones: Iterable[str | Zone] = (ZONE,)) -> None:
        self.others: Callable[[Labels], LocalName | None] = lambda name: None
        written = [zone if isinstance(zone, Zone) else Zone(name=zone) for zone in zones]
        self._rules = {parse_name(zone.name): _Rules(zone) for zone in written}
        # The longest first: a zone may lie within another one.
        self._zones = tuple(sorted(self._rules, key=len, reverse=True))
        self._addresses: dict[Labels, tuple[bytes, ...]] = {}
        self._records: dict[Labels, tuple[tuple[str, str], ...]] = {}
        self._pointers: dict[Labels, Labels] = {}
        self._parents: set[Labels] = set(self._zones)
        for text, addresses in hosts.items():
            self._add(parse_name(text), addresses)
        for zone in written:
            for text, addresses in zone.hosts.items():
                self._add(_within(text, zone.name), addresses)
            for text, records in zone.records.items():
                name = _within(text, zone.name)
                self._add(name, ())
                self._records[name] = (*self._records.get(name, ()), *records)

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
            return LocalName(True, addresses or (), pointer, zone, self._records.get(name, ()))
        other = self.others(name)
        if other is not None:
            return dataclasses.replace(other, zone=zone)
        if not zone:
            return None
        found = self._rules[zone].find(name[: -len(zone)])
        return LocalName(found is not None or name in self._parents, found or (), zone=zone)


class _Rules:
    """What a zone says of names that are not in its table."""

    __slots__ = ("_default", "_patterns")

    def __init__(self, zone: Zone) -> None:
        self._default = tuple(zone.default)
        self._patterns = []
        for pattern, addresses in zone.patterns:
            try:
                self._patterns.append((re.compile(pattern, re.IGNORECASE), tuple(addresses)))
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        if any(len(one) not in (4, 16) for _, addresses in zone.patterns for one in addresses) or any(
            len(one) not in (4, 16) for one in zone.default
        ):
            raise ValueError("an address has 4 or 16 bytes")

    def find(self, labels: Labels) -> tuple[bytes, ...] | None:
        """The addresses of a name within the zone, None if there are none."""
        if not labels:
            return None
        if self._patterns:
            text = b".".join(labels).decode("ascii", "replace")
            for pattern, addresses in self._patterns:
                if pattern.search(text):
                    return addresses
        return self._default or None


def _within(text: str, zone: str) -> Labels:
    """The name `text` within `zone`."""
    return parse_name(zone) if text in ("", "@") else (*parse_name(text), *parse_name(zone))
