"""The host's own addresses, kept current.

On Linux a non-blocking rtnetlink socket dumps them once (RTM_GETADDR) and is then told of
every change. Where there is no rtnetlink an address is probed instead: only an address of
the host can be bound to.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Callable

from tunstack.nat.poller import READ, Poller

_RTM_NEWADDR = 20
_RTM_DELADDR = 21
_RTM_GETADDR = 22
_NLM_F_REQUEST_DUMP = 0x301
_GROUPS = 0x10 | 0x100
"""RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR."""
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_BROADCAST = 4
_RECEIVE = 65536
"""Bytes; the kernel fills at most 32 KiB into one answer of a dump."""

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_RTATTR = struct.Struct("=HH")  # length, type

Entry = tuple[int, bytes, bytes | None]
"""Interface index, local address, broadcast address."""


def parse_messages(data: bytes) -> list[tuple[bool, Entry]]:
    """The address changes (True: added) in a netlink datagram.

    Malformed messages end the parsing; the kernel sends none.
    """
    changes: list[tuple[bool, Entry]] = []
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            break
        if kind in (_RTM_NEWADDR, _RTM_DELADDR):
            entry = _parse_address(data[offset + _HEADER.size : offset + length])
            if entry is not None:
                changes.append((kind == _RTM_NEWADDR, entry))
        offset += (length + 3) & ~3
    return changes


def _parse_address(body: bytes) -> Entry | None:
    if len(body) < _IFADDRMSG.size:
        return None
    _, _, _, _, index = _IFADDRMSG.unpack_from(body)
    attributes: dict[int, bytes] = {}
    offset = _IFADDRMSG.size
    while offset + _RTATTR.size <= len(body):
        length, kind = _RTATTR.unpack_from(body, offset)
        if length < _RTATTR.size or offset + length > len(body):
            break
        attributes[kind] = body[offset + _RTATTR.size : offset + length]
        offset += (length + 3) & ~3
    # On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL ours.
    address = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if address is None or len(address) not in (4, 16):
        return None
    return index, address, attributes.get(_IFA_BROADCAST)


class HostAddresses:
    """Which addresses are the host's own, now.

    Attributes:
        addresses: the addresses; empty if they have to be probed.
        broadcasts: the directed broadcast addresses of the host's networks.
        current: the sets are kept current; False means that `is_local` probes.
        on_change: called after every change.
    """

    __slots__ = ("_entries", "_poller", "_sock", "addresses", "broadcasts", "current", "on_change")

    def __init__(self, poller: Poller, *, probe: bool = False) -> None:
        self.addresses: frozenset[bytes] = frozenset()
        self.broadcasts: frozenset[bytes] = frozenset()
        self.on_change: Callable[[], None] | None = None
        self._entries: dict[tuple[int, bytes], bytes | None] = {}
        self._poller = poller
        self._sock: socket.socket | None = None
        self.current = False
        if not probe and hasattr(socket, "AF_NETLINK"):
            self._open()

    def is_local(self, address: bytes) -> bool:
        """True if `address` (4 or 16 bytes) is one of the host."""
        if self.current:
            return address in self.addresses
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.bind((socket.inet_ntop(family, address), 0))
        except OSError:
            return False
        return True

    def on_ready(self, ready: int, now: float) -> None:
        try:
            self._read()
        except OSError:
            self.close()
            self.current = False

    def close(self) -> None:
        """Close the netlink socket; the sets stay as they are."""
        if self._sock is not None:
            self._poller.remove(self._sock)
            self._sock.close()
            self._sock = None

    def _open(self) -> None:
        if sys.platform != "linux":
            return  # there is nobody who would tell: probe
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        except OSError:
            return  # a sandbox that forbids netlink: probe
        try:
            sock.bind((0, _GROUPS))
            self._sock = sock
            self._dump()
            self._read()
        except OSError:
            self._sock = None
            sock.close()
            return
        self.current = True
        self._poller.add(sock, self, READ)

    def _dump(self) -> None:
        """Ask for all addresses anew. The kernel answers as it is read, so nothing waits."""
        assert self._sock is not None
        self._entries.clear()
        body = _IFADDRMSG.pack(0, 0, 0, 0, 0)
        size = _HEADER.size + len(body)
        self._sock.send(_HEADER.pack(size, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0) + body)

    def _read(self) -> None:
        assert self._sock is not None
        entries = self._entries
        while True:
            try:
                data = self._sock.recv(_RECEIVE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._dump()  # notifications were lost: start over
                continue
            for added, (index, address, broadcast) in parse_messages(data):
                if added:
                    entries[index, address] = broadcast
                else:
                    entries.pop((index, address), None)
        self.addresses = frozenset(address for _, address in entries)
        self.broadcasts = frozenset(
            broadcast for (_, address), broadcast in entries.items() if broadcast and broadcast != address
        )
        if self.on_change is not None:
            self.on_change()
