"""The source guard: what a guest on a shared segment may say about who it is.

Theory of operation. The switch binds a MAC to the port where it was first heard; the guard binds addresses to
MACs. Each frame *claims* addresses: the source of an IP packet, the sender of an ARP message, the target of a
neighbour advertisement. A claim holds

- if DHCP has leased the address to that MAC, or it is its static one: nobody else may use it, and the MAC may
  use no other IPv4 address;
- else if nobody else has claimed it within `AGE`: the first to use it owns it (as in RFC 6620, FCFS SAVI).

The unspecified address claims nothing. Whatever is the gateway's own cannot be claimed, and no guest may play
it in other ways: router advertisements and redirects, and answers of DHCP servers, are dropped (RFC 6105,
RFC 7113 for headers in front of them, RFC 7513); what asks a DHCP server has to be for its own MAC, so that a
relay agent needs a port without a guard. A VLAN or priority tag hides nothing.

Bounds: `limits.port_stations` owned addresses a port; the one that was claimed first makes room.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Protocol

from tunstack.errors import DropReason
from tunstack.link.ethernet import ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6
from tunstack.packet import Buffer

AGE = 300.0
"""Seconds after which a station or an address that was not heard of is anybody's (802.1D 7.9.2)."""

_VLAN_TAGS = (0x8100, 0x88A8)
_ARP_ETHERNET_IPV4 = b"\0\1\x08\0\6\4"
_UDP, _ICMPV6 = 17, 58
_CHAIN = (0, 43, 60)
"""Extension headers that an ICMPv6 message may stand behind; a host takes no NDP in fragments (RFC 6980)."""
_MOST_HEADERS = 8
_ROUTER_ADVERTISEMENT, _NEIGHBOUR_ADVERTISEMENT, _REDIRECT = 134, 136, 137


class Leases(Protocol):
    """Who has which address by order of the gateway.

    Attributes:
        changes: grows with each change of what is leased.
    """

    changes: int

    def may_use(self, mac: bytes, address: bytes, now: float) -> bool | None:
        """Whether `mac` may use `address` (IPv4) by order of the gateway; None: there is no order."""
        ...

    def forget_port(self, port: int) -> None:
        """Nobody is behind `port` any more."""
        ...


class _Owner:
    __slots__ = ("heard_at", "mac", "port")

    def __init__(self, mac: bytes, port: int, now: float) -> None:
        self.mac = mac
        self.port = port
        self.heard_at = now


class _Refused(Exception):
    def __init__(self, reason: DropReason) -> None:
        self.reason = reason


class SourceGuard:
    """Decides about the claims of all ports of one segment.

    Attributes:
        leases: who asks this must find the leases there are now; None: there are none.
    """

    def __init__(self, own_addresses: Set[bytes], most: int) -> None:
        """`own_addresses`: of the gateway, which may change; `most`: owned addresses a port."""
        self.leases: Leases | None = None
        self._own = own_addresses
        self._most = most
        self._owners: dict[bytes, _Owner] = {}
        self._owned: dict[int, dict[bytes, None]] = {}

    def __len__(self) -> int:
        """Addresses that are owned by their first user."""
        return len(self._owners)

    def check(self, frame: Buffer, mac: bytes, port: int, now: float) -> DropReason | None:
        """Why `frame`, which `mac` has sent at `port`, may not pass; None: it may."""
        try:
            for address in _claims(frame, mac):
                if not self._may_use(address, mac, port, now):
                    return DropReason.SPOOFED_ADDRESS
        except _Refused as refused:
            return refused.reason
        except IndexError:  # it ends within a header, and no host takes it
            return DropReason.FRAME_TOO_SHORT
        return None

    def is_in_use(self, address: bytes, mac: bytes, now: float) -> bool:
        """Whether the gateway has `address`, or somebody but `mac` has claimed it lately without a lease."""
        if address in self._own:  # by now; it may not have been when the server began
            return True
        owner = self._owners.get(address)
        return owner is not None and owner.mac != mac and now - owner.heard_at < AGE

    def forget(self, port: int) -> None:
        """The port is gone, and with it all claims that came from there."""
        for address in self._owned.pop(port, ()):
            del self._owners[address]
        if self.leases is not None:
            self.leases.forget_port(port)

    def _may_use(self, address: bytes, mac: bytes, port: int, now: float) -> bool:
        if not any(address):
            return True
        if address in self._own:
            return False
        if len(address) == 4 and self.leases is not None:
            leased = self.leases.may_use(mac, address, now)
            if leased is not None:
                return leased
        owner = self._owners.get(address)
        if owner is None or (owner.mac != mac and now - owner.heard_at >= AGE):
            self._take(address, mac, port, now)
            return True
        if owner.mac != mac:
            return False
        if owner.port != port:  # the station has moved, which is the switch's to judge
            self._take(address, mac, port, now)
        owner.heard_at = now
        return True

    def _take(self, address: bytes, mac: bytes, port: int, now: float) -> None:
        before = self._owners.pop(address, None)
        if before is not None:
            del self._owned[before.port][address]
        owned = self._owned.setdefault(port, {})
        if len(owned) >= self._most:
            oldest = next(iter(owned))
            del owned[oldest], self._owners[oldest]
        owned[address] = None
        self._owners[address] = _Owner(mac, port, now)


def _claims(frame: Buffer, mac: bytes) -> Iterator[bytes]:
    """The addresses that `frame` claims.

    `_Refused` for what no guest may send, IndexError if it ends early.
    """
    at = 12
    while (ethertype := _u16(frame, at)) in _VLAN_TAGS:
        at += 4
    at += 2
    if ethertype == ETHERTYPE_IPV4:
        yield _cut(frame, at + 12, 4)
        if frame[at + 9] == _UDP and not _u16(frame, at + 6) & 0x1FFF:
            _check_dhcp(frame, at + (frame[at] & 15) * 4, mac)
    elif ethertype == ETHERTYPE_IPV6:
        yield _cut(frame, at + 8, 16)
        target = _advertised(frame, at)
        if target is not None:
            yield target
    elif ethertype == ETHERTYPE_ARP:
        if _cut(frame, at, 6) != _ARP_ETHERNET_IPV4:
            raise _Refused(DropReason.BAD_ARP)
        if _cut(frame, at + 8, 6) != mac:
            raise _Refused(DropReason.SPOOFED_MAC)
        yield _cut(frame, at + 14, 4)


def _check_dhcp(frame: Buffer, udp: int, mac: bytes) -> None:
    """No answers of a server, and requests of `mac` alone."""
    ports = _cut(frame, udp, 4)
    if ports == b"\0\x43\0\x44":
        raise _Refused(DropReason.ROGUE_SERVER)
    if ports[2:] == b"\0\x43" and _cut(frame, udp + 36, 6) != mac:
        raise _Refused(DropReason.SPOOFED_MAC)


def _advertised(frame: Buffer, at: int) -> bytes | None:
    """The target, if the IPv6 packet at `at` is a neighbour advertisement."""
    following = frame[at + 6]
    at += 40
    for _ in range(_MOST_HEADERS):
        if following not in _CHAIN:
            break
        following, at = frame[at], at + 8 + frame[at + 1] * 8
    else:
        raise _Refused(DropReason.EXTENSION_HEADER)
    if following != _ICMPV6:
        return None
    kind = frame[at]
    if kind in (_ROUTER_ADVERTISEMENT, _REDIRECT):
        raise _Refused(DropReason.ROGUE_SERVER)
    return _cut(frame, at + 8, 16) if kind == _NEIGHBOUR_ADVERTISEMENT else None


def _u16(frame: Buffer, at: int) -> int:
    return frame[at] << 8 | frame[at + 1]


def _cut(frame: Buffer, at: int, size: int) -> bytes:
    part = bytes(frame[at : at + size])
    if len(part) < size:
        raise IndexError
    return part
