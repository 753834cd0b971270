"""What a guest may reach: the decision before every dial and every datagram.

Theory of operation. By default a guest reaches the world and nothing of the host. Refused
are the destinations that would turn back into the host or are meant for one link only:

====================================  ==========================================
0.0.0.0/8, ::                         connecting there reaches loopback on Linux
127.0.0.0/8, ::1                      the host's loopback
::/96, ::ffff:0:0/96                  IPv4 in disguise, whatever it stands for
64:ff9b::/96, 2002::/16               as the IPv4 address inside (RFC 6052, RFC 3056)
169.254.0.0/16, fe80::/10, fd00:ec2::254   link-local; cloud metadata
224.0.0.0/4, ff00::/8                 multicast
255.255.255.255, directed broadcasts  broadcast
the gateway's own addresses           nothing listens there but the services
the virtual network                   a neighbour that does not exist
every address of the host             unless `allow_host`
====================================  ==========================================

An address in `host_loopback` means the loopback address of the host and is the only way
to it. Verdicts are cached by destination; a change of the host's addresses clears the cache.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import socket
from collections.abc import Callable

from tunstack.ip.addresses import is_single_host
from tunstack.ip.header import TCP
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.nat.config import NatConfig
from tunstack.nat.host_addresses import HostAddresses

LOOPBACK = {4: bytes((127, 0, 0, 1)), 16: bytes(15) + b"\x01"}

_CACHE = 4096
"""Verdicts kept for each kind of protocol; about 1 MiB in all."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a flow or a datagram.

    Attributes:
        allow: let it go to `destination`.
        destination: the host-side address, which differs from the guest's for `host_loopback`.
        kind: if refused, the ICMP error that says so. None: a reset for TCP; for the rest
            silence, because RFC 1122 3.2.2 forbids errors about broadcast and multicast.
    """

    allow: bool
    destination: bytes
    kind: IcmpErrorKind | None = None


_Prefix = tuple[int, int, int]
"""Address length in bytes, bits of the host part, value of the rest."""


def _prefix(address: bytes, bits: int) -> _Prefix:
    shift = 8 * len(address) - bits
    return len(address), shift, int.from_bytes(address, "big") >> shift


def _prefixes(*texts: str) -> tuple[_Prefix, ...]:
    networks = map(ipaddress.ip_network, texts)
    return tuple(_prefix(network.network_address.packed, network.prefixlen) for network in networks)


_MULTICAST = _prefixes("224.0.0.0/4", "ff00::/8", "255.255.255.255/32")
_REFUSED = _prefixes(
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "::/96",
    "::ffff:0:0/96",
    "fe80::/10",
    "fd00:ec2::254/128",
)
_NAT64 = _prefixes("64:ff9b::/96")
_6TO4 = _prefixes("2002::/16")


def _within(address: bytes, prefixes: tuple[_Prefix, ...]) -> bool:
    number = int.from_bytes(address, "big")
    length = len(address)
    return any(length == size and number >> shift == value for size, shift, value in prefixes)


class Policy:
    """Decides where a guest's traffic may go.

    `own_addresses` is the live set of the gateway's addresses.

    Attributes:
        on_forget: called when former verdicts are no longer good.
    """

    __slots__ = ("_cache", "_config", "_host", "_networks", "_own", "on_forget")

    def __init__(self, config: NatConfig, own_addresses: set[bytes], host: HostAddresses) -> None:
        self._config = config
        self._own = own_addresses
        self._host = host
        self._networks = tuple(_prefix(address, bits) for address, bits in config.networks)
        self._cache: tuple[dict[bytes, Verdict], dict[bytes, Verdict]] = ({}, {})
        self.on_forget: Callable[[], None] | None = None
        host.on_change = self.forget

    def forget(self) -> None:
        """Decide everything anew: an address of the host or of the gateway has changed."""
        for cache in self._cache:
            cache.clear()
        if self.on_forget is not None:
            self.on_forget()

    @property
    def is_lasting(self) -> bool:
        """Whether a verdict is good until `forget`, because changes of the host's addresses are told of."""
        return self._host.current

    def decide(self, protocol: int, src: bytes, dst: bytes, dst_port: int) -> Verdict:
        """The verdict on traffic of IP protocol `protocol` from guest `src` to `dst`."""
        cache = self._cache[protocol == TCP]
        verdict = cache.get(dst)
        if verdict is None:
            verdict = self._decide(protocol, dst)
            if self._host.current:
                if len(cache) >= _CACHE:
                    cache.clear()
                cache[dst] = verdict
        return verdict

    def reporter(self, offender: bytes | None, host: str, guest_view: bytes) -> bytes | None:
        """Who reports an error to the guest; None: the gateway itself.

        A destination reports under the address that the guest knows it by, a router under its
        own. The host is the gateway's other side and does not show.
        """
        if offender is None:
            return None
        if socket.inet_ntop(socket.AF_INET if len(offender) == 4 else socket.AF_INET6, offender) == host:
            return guest_view
        return None if self._host.is_local(offender) or _within(offender, _REFUSED) else offender

    def _decide(self, protocol: int, dst: bytes) -> Verdict:
        if dst in self._config.host_loopback:
            return Verdict(True, LOOPBACK[len(dst)])
        if self._is_broadcast(dst):
            return Verdict(False, dst)
        reset = protocol == TCP and is_single_host(dst)  # no RST can come from 127.0.0.1 or ::ffff:0:0/96
        if dst in self._own:
            return Verdict(False, dst, None if reset else IcmpErrorKind.PORT_UNREACHABLE)
        if _within(dst, self._networks):
            return Verdict(False, dst, IcmpErrorKind.HOST_UNREACHABLE)
        if _within(dst, _REFUSED) or (self._host.is_local(dst) and not self._config.allow_host):
            return Verdict(False, dst, None if reset else IcmpErrorKind.ADMIN_PROHIBITED)
        embedded = dst[12:] if _within(dst, _NAT64) else dst[2:6] if _within(dst, _6TO4) else None
        if embedded is not None and not self._decide(protocol, embedded).allow:
            return Verdict(False, dst, None if reset else IcmpErrorKind.ADMIN_PROHIBITED)
        return Verdict(True, dst)

    def _is_broadcast(self, dst: bytes) -> bool:
        if _within(dst, _MULTICAST) or dst in self._host.broadcasts:
            return True
        number = int.from_bytes(dst, "big")
        return len(dst) == 4 and any(
            size == 4 and shift > 1 and number == (value << shift) | ((1 << shift) - 1)
            for size, shift, value in self._networks
        )
