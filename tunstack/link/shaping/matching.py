"""What tells packets apart for shaping: the far end's prefix, its port, and the protocol."""

from __future__ import annotations

import dataclasses
import ipaddress

from tunstack.link.shaping.headers import find
from tunstack.link.shaping.units import ShapeError, whole
from tunstack.packet import Packet

PROTOCOLS = {"tcp": (6,), "udp": (17,), "icmp": (1, 58)}
"""By their names; ICMP of either version."""
CONDITIONS = ("to", "port", *PROTOCOLS)
"""The words with which a match may begin."""


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What a packet shows of itself; see `look`.

    Attributes:
        version: 4 or 6, or 0: no IP.
        protocol: the number behind the IP header.
        far: the far end's address as a number.
        port: the far end's port, or -1.
    """

    version: int
    protocol: int
    far: int
    port: int


NOTHING = Seen(0, -1, 0, -1)


def look(packet: Packet, *, l2: bool, up: bool) -> Seen:
    """Addresses, protocol and port of `packet`. `up`: its far end is where it goes to."""
    data = packet.tobytes()
    headers = find(data, l2)
    if headers is None:
        return NOTHING
    size, first = (4, 12) if headers.version == 4 else (16, 8)
    at = headers.ip + first + (size if up else 0)
    far = int.from_bytes(data[at : at + size], "big")
    port = -1
    is_first = not headers.fragment & 0x1FFF
    if headers.has_ports and is_first and len(data) >= headers.transport + 4:
        at = headers.transport + (2 if up else 0)
        port = int.from_bytes(data[at : at + 2], "big")
    return Seen(headers.version, headers.protocol, far, port)


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """Which packets are meant; each condition that is given must hold.

    Attributes:
        prefix: of the far end, as text in its shortest form, or "".
        first, last: ports of the far end, or -1.
        protocol: a name of `PROTOCOLS`, or "".
    """

    prefix: str = ""
    first: int = -1
    last: int = -1
    protocol: str = ""

    @classmethod
    def parse(cls, text: str) -> Match:
        """Read `to PREFIX`, `port N[-M]`, `tcp`, `udp`, `icmp`, in any order; `ShapeError`."""
        fields: dict[str, str | int] = {}
        words = text.lower().split()
        while words:
            word = words.pop(0)
            if word in PROTOCOLS:
                new: dict[str, str | int] = {"protocol": word}
            elif word in ("to", "port") and words:
                new = _prefix(words.pop(0)) if word == "to" else _ports(words.pop(0))
            else:
                raise ShapeError(
                    "before a ':' come 'to PREFIX', 'port N', 'port N-M', 'tcp', 'udp' or 'icmp', "
                    f"not '{word}'"
                )
            if set(new) & set(fields):
                raise ShapeError(f"before a ':' {word} comes once")
            fields |= new
        if not fields:
            raise ShapeError("before a ':' comes what is meant, such as 'udp port 53'")
        if "first" in fields and fields.get("protocol") == "icmp":
            raise ShapeError("icmp has no ports")
        return cls(**fields)  # type: ignore[arg-type]

    def __str__(self) -> str:
        words = [f"to {self.prefix}"] if self.prefix else []
        if self.protocol:
            words.append(self.protocol)
        if self.first >= 0:
            words.append(f"port {self.first}" + (f"-{self.last}" if self.last != self.first else ""))
        return " ".join(words)


class Matcher:
    """A `Match` made ready for many packets."""

    __slots__ = ("_first", "_last", "_mask", "_network", "_protocols", "_version")

    def __init__(self, match: Match) -> None:
        self._first, self._last = match.first, match.last
        self._protocols = PROTOCOLS.get(match.protocol, ())
        self._version = self._network = self._mask = 0
        if match.prefix:
            network = ipaddress.ip_network(match.prefix)
            self._version = network.version
            self._network, self._mask = int(network.network_address), int(network.netmask)

    def fits(self, seen: Seen) -> bool:
        """Whether it is meant."""
        if not seen.version or (self._protocols and seen.protocol not in self._protocols):
            return False
        if self._first >= 0 and not self._first <= seen.port <= self._last:
            return False
        return not self._version or (seen.version == self._version and seen.far & self._mask == self._network)


def is_prefix(text: str) -> bool:
    """Whether `text` is an address or a prefix."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _prefix(text: str) -> dict[str, str | int]:
    try:
        return {"prefix": str(ipaddress.ip_network(text))}
    except ValueError:
        raise ShapeError(f"to: '{text}' is not an address or a prefix such as 10.1.0.0/16") from None


def _ports(text: str) -> dict[str, str | int]:
    low, dash, high = text.partition("-")
    first = whole("port", low)
    last = whole("port", high) if dash else first
    if not 0 <= first <= last <= 65535:
        raise ShapeError(f"port: '{text}' is not a port, or two with the greater one last")
    return {"first": first, "last": last}
