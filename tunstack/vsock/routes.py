"""Routes as text, `DESTINATION=TARGET`, and forwards, `LISTENER=TARGET`.

    10.0.2.50:5432=unix:///run/postgresql/.s.PGSQL.5432
    10.0.2.51:1-1023=vsock://3:80
    0.0.0.0/0=socks5://user:password@127.0.0.1:1080
    192.168.7.0/24=direct
    10.0.2.52:53/udp=vsock://3:53

DESTINATION is an address or a prefix, and maybe a port or a range of them; IPv6 with ports is in brackets.
TARGET is a service (see `addresses`), a proxy (`socks5://` or `http://`, which is asked for the destination)
or `direct`. What is printed of a proxy has no user and password. With `/udp` it is about UDP, which goes to
another tunstack by a stream of datagrams, to a UDP service (`udp://`), or by a SOCKS5 proxy.

    vsock://:8080=tcp://10.0.2.100:80
    unix:///run/web.sock=tcp://127.0.0.1:80
    vsock://:53=udp://10.0.2.100:53

LISTENER is an address that is listened at; TARGET is a port of a guest, or any service that the host reaches.
With a UDP port as TARGET what comes in at LISTENER is another tunstack's streams of datagrams.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from urllib.parse import unquote, urlsplit

from tunstack.ip.header import TCP, UDP
from tunstack.nat.poller import Poller
from tunstack.nat.routes import Match, Route
from tunstack.vsock.addresses import (
    Address,
    AddressError,
    TcpAddress,
    UdpAddress,
    parse_address,
    parse_udp_address,
)
from tunstack.vsock.datagrams import SocketOpener, SocksOpener, StreamOpener
from tunstack.vsock.dialers import AddressDialer, http_dialer, socks5_dialer
from tunstack.vsock.handshakes import Credentials

_LONGEST = 255
"""Bytes of a user or a password for SOCKS5 (RFC 1929 2)."""
DIRECT = "direct"
_UDP_SUFFIX = "/udp"
_BETWEEN = re.compile(r"=(?=[a-z0-9]+://)")


@dataclasses.dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy; what is printed is safe to show."""

    scheme: str
    address: TcpAddress
    credentials: Credentials | None = None

    def __str__(self) -> str:
        return str(self.address).replace("tcp:", f"{self.scheme}:", 1)


Target = Address | UdpAddress | Proxy | None
"""None: the destination itself, by the host's network."""


@dataclasses.dataclass(frozen=True, slots=True)
class RouteSpec:
    """A route as somebody has ordered it; `str` has no credentials."""

    match: Match
    target: Target

    @classmethod
    def parse(cls, text: str) -> RouteSpec:
        """The route that `text` is; `AddressError` if it is none, which shows no credentials."""
        destination, equals, target = text.partition("=")
        if not equals:
            raise AddressError("a route is DESTINATION=TARGET, as in 10.0.2.50:80=unix:///run/web.sock")
        spec = cls(_parse_match(destination), _parse_target(target))
        if spec.match.protocol == UDP:
            if isinstance(spec.target, Proxy) and spec.target.scheme != "socks5":
                raise AddressError("an HTTP proxy carries no UDP; a SOCKS5 proxy may")
        elif isinstance(spec.target, UdpAddress):
            raise AddressError("a route to udp:// is one of UDP, as in 10.0.2.52:53/udp=udp://127.0.0.1:53")
        return spec

    def route(self, poller: Poller) -> Route:
        """The route, with its dialer or opener."""
        target = self.target
        if target is None:
            return Route(match=self.match, is_end=False)
        if self.match.protocol == UDP:
            return self._route_of_datagrams(target)
        assert not isinstance(target, UdpAddress)
        if isinstance(target, Proxy):
            make = socks5_dialer if target.scheme == "socks5" else http_dialer
            dialer = make(poller, target.address, target.credentials)
            return Route(match=self.match, dialer=dialer, is_end=False)
        return Route(match=self.match, dialer=AddressDialer(poller, target), is_end=True)

    def _route_of_datagrams(self, target: Address | UdpAddress | Proxy) -> Route:
        if isinstance(target, Proxy):
            opener = SocksOpener(target.address, target.credentials)
            return Route(match=self.match, opener=opener, is_end=False)
        if isinstance(target, UdpAddress):
            return Route(match=self.match, opener=SocketOpener(target), is_end=True)
        return Route(match=self.match, opener=StreamOpener(target), is_end=True)

    def __str__(self) -> str:
        match = self.match
        network = str(ipaddress.ip_address(match.address))
        if not match.is_single:
            network += f"/{match.bits}"
        if (match.first_port, match.last_port) != (0, 0xFFFF):
            ports = str(match.first_port)
            if match.last_port != match.first_port:
                ports += f"-{match.last_port}"
            network = f"[{network}]:{ports}" if ":" in network else f"{network}:{ports}"
        if match.protocol == UDP:
            network += _UDP_SUFFIX
        return f"{network}={DIRECT if self.target is None else self.target}"


@dataclasses.dataclass(frozen=True, slots=True)
class ForwardSpec:
    """A listener of the host and where its clients are led."""

    listener: Address
    target: Address | UdpAddress

    @classmethod
    def parse(cls, text: str) -> ForwardSpec:
        """The forward that `text` is; `AddressError` if it is none."""
        parts = _BETWEEN.split(text)
        if len(parts) != 2:
            raise AddressError("a forward is LISTENER=TARGET, as in vsock://:8080=tcp://10.0.2.100:80")
        listener, target = parse_address(parts[0]), _parse_service(parts[1])
        _check_numeric(listener)
        _check_numeric(target)
        return cls(listener, target)

    def __str__(self) -> str:
        return f"{self.listener}={self.target}"


def _parse_service(text: str) -> Address | UdpAddress:
    return parse_udp_address(text) if text.startswith("udp:") else parse_address(text)


def _parse_match(text: str) -> Match:
    protocol = UDP if text.endswith(_UDP_SUFFIX) else TCP
    text = text.removesuffix(_UDP_SUFFIX).removesuffix("/tcp")
    network, ports = text, ""
    if text.startswith("["):
        network, bracket, ports = text[1:].partition("]")
        if not bracket or ports[:1] not in ("", ":"):
            raise AddressError(f"'{text}' is no destination, as in [fd00::50]:80")
        ports = ports[1:]
    elif text.count(":") == 1:
        network, _, ports = text.partition(":")
    try:
        prefix = ipaddress.ip_network(network)
    except ValueError as error:
        raise AddressError(f"'{text}' is no destination: {error}") from None
    first, last = _parse_ports(ports) if ports else (0, 0xFFFF)
    return Match(
        address=prefix.network_address.packed,
        bits=prefix.prefixlen,
        first_port=first,
        last_port=last,
        protocol=protocol,
    )


def _parse_ports(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not dash:
        last = first
    numbers = [int(one) for one in (first, last) if one.isascii() and one.isdecimal() and len(one) < 6]
    if len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] <= 0xFFFF:
        raise AddressError(f"'{text}' is no port and no range of ports, as in 1-1023")
    return numbers[0], numbers[1]


def _parse_target(text: str) -> Target:
    if text == DIRECT:
        return None
    scheme = text.partition(":")[0]
    target = _parse_proxy(scheme, text) if scheme in ("socks5", "http") else _parse_service(text)
    _check_numeric(target.address if isinstance(target, Proxy) else target)
    return target


def _check_numeric(address: Address | UdpAddress) -> None:
    if isinstance(address, (TcpAddress, UdpAddress)):
        try:
            ipaddress.ip_address(address.host)
        except ValueError:
            raise AddressError(f"'{address.host}' is no IP address; names are not looked up here") from None


def _parse_proxy(scheme: str, text: str) -> Proxy:
    complaint = AddressError(f"the proxy has an address and a port, as in {scheme}://127.0.0.1:1080")
    try:
        parts = urlsplit(text)
        if not parts.hostname or not parts.port or parts.path.strip("/") or parts.query or parts.fragment:
            raise complaint
        address = TcpAddress(parts.hostname, parts.port)
    except ValueError:
        raise complaint from None
    credentials = None
    if parts.username is not None:
        credentials = Credentials(unquote(parts.username), unquote(parts.password or ""))
        if not all(1 <= len(one.encode()) <= _LONGEST for one in (credentials.user, credentials.password)):
            raise AddressError(f"user and password of a proxy have 1 to {_LONGEST} bytes")
    return Proxy(scheme, address, credentials)
