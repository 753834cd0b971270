"""Who has which address in a virtual network, and what the command line says about it.

Addresses are `bytes`, MACs 6 `bytes`, as everywhere below the command line; the functions here
turn text into them and raise :class:`PlanError` with one clear sentence where they cannot.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from typing import Literal, TypeVar

SHORTEST_PREFIX = 8

MIN_MTU = 576
"""RFC 1122 3.3.2: every host takes datagrams of this size."""
MIN_MTU6 = 1280
"""RFC 8200 5: a link with a smaller MTU has no IPv6."""
MAX_MTU = 65520
"""What fits a 64 KiB frame beside its headers, rounded as other gateways do."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Who stands where in a subnet, counted from its first address; in IPv6 the digits are the same.

    Attributes:
        subnet: if nobody says another.
        gateway, dns, guest: gateway, DNS service, and (first) guest.
        longest_prefix: the longest prefix of a subnet that has room for all.
        has_host: whether the last address but one is kept for the host's loopback.
        network6: first address of the IPv6 network, which is a /64.
        gateway_mac, guest_mac: locally administered unicast addresses (IEEE 802, bit 1 of the first byte).
    """

    subnet: str
    gateway: int
    dns: int
    guest: int
    longest_prefix: int
    has_host: bool
    network6: bytes
    gateway_mac: bytes
    guest_mac: bytes


NAMESPACE = Layout(
    subnet="10.0.2.0/24",
    gateway=2,
    dns=3,
    guest=100,
    longest_prefix=25,
    has_host=False,
    network6=bytes.fromhex("fd000000000000000000000000000000"),
    gateway_mac=bytes.fromhex("5a94ef000002"),
    guest_mac=bytes.fromhex("5a94ef000064"),
)
"""One guest, as users of slirp4netns know it; fd00::/64 with ::2, ::3, ::100."""
MACHINES = Layout(
    subnet="192.168.127.0/24",
    gateway=1,
    dns=1,
    guest=2,
    longest_prefix=29,
    has_host=True,
    network6=bytes.fromhex("fd00007f000000000000000000000000"),
    gateway_mac=bytes.fromhex("5a94efe40cdd"),
    guest_mac=bytes.fromhex("5a94efe40cee"),
)
"""Virtual machines, as users of gvproxy know it; fd00:7f::/64 with ::1 and ::2."""

Protocol = Literal["tcp", "udp"]

_T = TypeVar("_T")


class PlanError(ValueError):
    """An address, port or name that the user gave cannot be used; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AddressPlan:
    """The addresses of one virtual network, which has both families.

    Attributes:
        network: first address of the subnet; `prefix` its length in bits.
        gateway: the gateway's address, the guest's default route.
        dns: where the DNS service answers; the gateway's too.
        guest: the guest's address; of several machines, that of the first.
        host: kept for the host's loopback, if it is to be reached; None: nothing is kept for that.
        gateway_mac: the gateway's MAC (all of its addresses share it).
        guest_mac: the MAC that a namespace's interface is given.
        mtu: IP MTU of the link, bytes; below 1280 the network has no IPv6 (`has_ipv6`).
        network6, prefix6, gateway6, dns6, guest6: the same of IPv6.
    """

    network: bytes
    prefix: int
    gateway: bytes
    dns: bytes
    guest: bytes
    host: bytes | None = None
    gateway_mac: bytes = NAMESPACE.gateway_mac
    guest_mac: bytes = NAMESPACE.guest_mac
    mtu: int = 1500
    network6: bytes = NAMESPACE.network6
    prefix6: int = 64
    gateway6: bytes = NAMESPACE.network6[:-1] + b"\x02"
    dns6: bytes = NAMESPACE.network6[:-1] + b"\x03"
    guest6: bytes = NAMESPACE.network6[:-2] + b"\x01\x00"

    @classmethod
    def from_subnet(
        cls, subnet: str | None = None, *, mtu: int = 1500, layout: Layout = NAMESPACE
    ) -> AddressPlan:
        """The plan for `subnet`, by default that of the layout: "10.0.2.0/24" with gateway .2, DNS .3, guest
        .100, or "192.168.127.0/24" with gateway and DNS .1, first guest .2, host .254.

        Raises:
            PlanError: the subnet or the MTU cannot be used.
        """
        if not MIN_MTU <= mtu <= MAX_MTU:
            raise PlanError(f"the MTU {mtu} is outside {MIN_MTU}..{MAX_MTU}")
        network = _parse_subnet(subnet or layout.subnet, layout)

        def at6(digits: int) -> bytes:
            return layout.network6[:-2] + bytes.fromhex(f"{digits:04}")

        return cls(
            network=network.network_address.packed,
            prefix=network.prefixlen,
            gateway=network[layout.gateway].packed,
            dns=network[layout.dns].packed,
            guest=network[layout.guest].packed,
            host=network[-2].packed if layout.has_host else None,
            gateway_mac=layout.gateway_mac,
            guest_mac=layout.guest_mac,
            mtu=mtu,
            network6=layout.network6,
            gateway6=at6(layout.gateway),
            dns6=at6(layout.dns),
            guest6=at6(layout.guest),
        )

    @property
    def gateway_text(self) -> str:
        """The gateway's address as text."""
        return _text(self.gateway)

    @property
    def dns_text(self) -> str:
        """The DNS address as text."""
        return _text(self.dns)

    @property
    def guest_text(self) -> str:
        """The guest's address as text."""
        return _text(self.guest)

    @property
    def subnet_text(self) -> str:
        """The subnet as text, "10.0.2.0/24"."""
        return f"{_text(self.network)}/{self.prefix}"

    @property
    def has_ipv6(self) -> bool:
        """Whether the MTU allows IPv6."""
        return self.mtu >= MIN_MTU6

    @property
    def networks(self) -> tuple[tuple[bytes, int], ...]:
        """The subnets, one a family: first address and length of the prefix in bits."""
        return self._families((self.network, self.prefix), (self.network6, self.prefix6))

    @property
    def gateways(self) -> tuple[bytes, ...]:
        """The gateway's addresses, one a family."""
        return self._families(self.gateway, self.gateway6)

    @property
    def resolvers(self) -> tuple[bytes, ...]:
        """The addresses of the DNS service, one a family."""
        return self._families(self.dns, self.dns6)

    @property
    def guests(self) -> tuple[bytes, ...]:
        """The guest's addresses, one a family."""
        return self._families(self.guest, self.guest6)

    def contains(self, address: bytes) -> bool:
        """Whether `address` is in the subnet of its family."""
        number = int.from_bytes(address, "big")
        return any(
            len(address) == len(network)
            and (number ^ int.from_bytes(network, "big")) >> (8 * len(network) - prefix) == 0
            for network, prefix in self.networks
        )

    def _families(self, v4: _T, v6: _T) -> tuple[_T, ...]:
        return (v4, v6) if self.has_ipv6 else (v4,)


@dataclasses.dataclass(frozen=True, slots=True)
class Publish:
    """A port of the host that leads to a port of the guest.

    Attributes:
        host: the address that the host listens on, 4 or 16 bytes.
        host_port: the port there.
        guest_port: the port of the guest.
        protocol: "tcp" or "udp".
    """

    host: bytes
    host_port: int
    guest_port: int
    protocol: Protocol = "tcp"

    @classmethod
    def parse(cls, text: str) -> Publish:
        """From "[HOST_IP:]HOST_PORT:GUEST_PORT[/udp]"; an IPv6 address stands in brackets.

        Raises:
            PlanError: the text does not have this form.
        """
        match = _PUBLISH.fullmatch(text)
        if match is None:
            raise PlanError(
                f"cannot publish '{text}': the form is [HOST_IP:]HOST_PORT:GUEST_PORT[/udp], "
                "an IPv6 address in brackets"
            )
        host = match["v4"] if match["v6"] is None else match["v6"]
        if host is None:
            address = b"\x7f\0\0\1"
        else:
            try:
                address = _address(host)
            except ValueError:
                raise PlanError(f"cannot publish '{text}': '{host}' is not an IP address") from None
            if (len(address) == 16) != (match["v6"] is not None):
                raise PlanError(f"cannot publish '{text}': brackets are for IPv6 addresses")
        ports = int(match["host_port"]), int(match["guest_port"])
        for port in ports:
            if not 1 <= port <= 65535:
                raise PlanError(f"cannot publish '{text}': the port {port} is outside 1..65535")
        return cls(address, *ports, "udp" if match["protocol"] == "udp" else "tcp")

    def __str__(self) -> str:
        host = _text(self.host) if len(self.host) == 4 else f"[{_text(self.host)}]"
        return f"{host}:{self.host_port}:{self.guest_port}/{self.protocol}"


_PUBLISH = re.compile(
    r"(?:(?:\[(?P<v6>[^\]]*)\]|(?P<v4>[^:\[\]]*)):)?"
    r"(?P<host_port>[0-9]{1,5}):(?P<guest_port>[0-9]{1,5})(?:/(?P<protocol>tcp|udp))?"
)

_V4_MAPPED = bytes(10) + b"\xff\xff"

_HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")


def parse_host_entry(text: str) -> tuple[str, bytes]:
    """From "NAME:IP": the lower-case name without a final dot, and the address.

    Raises:
        PlanError: the text does not have this form.
    """
    name, colon, address = text.partition(":")
    if not colon:
        raise PlanError(f"cannot add the host '{text}': the form is NAME:IP")
    name = name.lower().removesuffix(".")
    if len(name) > 253 or _HOST_NAME.fullmatch(name) is None:
        raise PlanError(f"cannot add the host '{text}': '{name}' is not a host name")
    try:
        return name, _address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise PlanError(f"cannot add the host '{text}': '{address}' is not an IP address") from None


def parse_host_loopback(text: str, plan: AddressPlan) -> bytes:
    """The guest-side address that means the host's 127.0.0.1, or ::1 if it is IPv6.

    Raises:
        PlanError: it is not an address, or somebody else's.
    """
    try:
        packed = _address(text)
    except ValueError:
        raise PlanError(f"--host-loopback: '{text}' is not an IP address") from None
    address = ipaddress.ip_address(packed)
    if (
        address.is_loopback
        or address.is_multicast
        or address.is_unspecified
        or (len(packed) == 16 and (address.is_link_local or packed[:12] == _V4_MAPPED))
    ):
        raise PlanError(f"--host-loopback: {text} cannot be reached by a guest; give a unicast address")
    if len(packed) == 16 and not plan.has_ipv6:
        raise PlanError(f"--host-loopback: with an MTU below {MIN_MTU6} there is no IPv6")
    if packed in plan.guests:
        raise PlanError(f"--host-loopback: {text} is the guest's own address")
    if len(packed) == 16 and packed == plan.network6:
        raise PlanError(f"--host-loopback: {text} stands for any router of its network (RFC 4291 2.6.1)")
    if len(packed) == 4 and plan.contains(packed):
        host_bits = 32 - plan.prefix
        host = int(address) & ((1 << host_bits) - 1)
        if host in (0, (1 << host_bits) - 1):
            raise PlanError(f"--host-loopback: {text} is the first or last address of {plan.subnet_text}")
    return packed


def parse_resolver(text: str) -> tuple[bytes, int]:
    """A resolver, "ADDRESS" or "ADDRESS:PORT" ("[ADDRESS]:PORT" for IPv6): address and port.

    Raises:
        PlanError: the text does not have this form.
    """
    host, port = text, "53"
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if rest or not bracket:
            port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = _address(host)
    except ValueError:
        raise PlanError(f"--dns: '{text}' is not an IP address, nor one with a port") from None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise PlanError(f"--dns: '{text}' has no port between 1 and 65535")
    return address, int(port)


def _parse_subnet(subnet: str, layout: Layout) -> ipaddress.IPv4Network:
    form = f"give an IPv4 network such as {layout.subnet}"
    if "/" not in subnet:
        raise PlanError(f"the subnet '{subnet}' has no prefix length; {form}")
    try:
        loose = ipaddress.ip_network(subnet, strict=False)
    except ValueError:
        raise PlanError(f"the subnet '{subnet}' is not a network; {form}") from None
    if not isinstance(loose, ipaddress.IPv4Network):
        raise PlanError(f"the subnet '{subnet}' is not IPv4; {form}")
    if str(loose.network_address) != subnet.partition("/")[0]:
        raise PlanError(f"the subnet '{subnet}' is not the start of a network; did you mean {loose}?")
    if loose.prefixlen > layout.longest_prefix:
        raise PlanError(f"the subnet {subnet} is too small: the prefix is at most /{layout.longest_prefix}")
    if loose.prefixlen < SHORTEST_PREFIX:
        raise PlanError(f"the subnet {subnet} is too large: the prefix is at least /{SHORTEST_PREFIX}")
    first = loose.network_address
    if (
        first.is_loopback
        or first.is_multicast
        or first.is_link_local
        or first.packed[0] in (0, *range(224, 256))
    ):
        raise PlanError(f"the subnet {subnet} is reserved for other uses; {form}")
    return loose


def _address(text: str) -> bytes:
    """The address that `text` is, without a scope ("%eth0"), which would be lost; ValueError if none."""
    if "%" in text:
        raise ValueError(text)
    return ipaddress.ip_address(text).packed


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))


DEFAULT_PLAN = AddressPlan.from_subnet()
