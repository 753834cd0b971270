"""A host socket for datagrams (UDP, ping, raw ICMP) that carries the guest's TTL, TOS and DF.

TTL and TOS travel as ancillary data (of ping sockets of IPv6 as options), so that one socket serves
datagrams of any; the message is built anew only when they change. `IP_MTU_DISCOVER` is switched only when DF
changes.
Errors of earlier datagrams wait in the socket's error queue and make the next send fail, whatever it is
about: `deliver` empties the queue and tries once more.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections.abc import Callable

from tunstack.errors import DropReason
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.nat.error_queue import IP_RECVERR, IPV6_RECVERR, QueuedError, kind_of_errno, read_error
from tunstack.nat.portable import Ancillary, receive_datagram, send_datagram
from tunstack.packet import Buffer

_LINUX = sys.platform == "linux"
_IP_TTL = 2
_IP_TOS = 1
_IP_MTU_DISCOVER = 10
_IP_RECVTTL = 12
_IP_RECVTOS = 13
_IPV6_MTU_DISCOVER = 23
_IPV6_RECVHOPLIMIT = 51
_IPV6_HOPLIMIT = 52
_IPV6_RECVTCLASS = 66
_IPV6_TCLASS = 67
_PMTUDISC_DONT = 0
_PMTUDISC_DO = 2
_SOL_UDP = 17
_UDP_SEGMENT = 103
_UDP_GRO = 104
_SEGMENTS = 64
"""UDP_MAX_SEGMENTS of Linux before 6.9."""
_DRAIN = 64
"""Entries taken from an error queue in one go."""

RECEIVE_SIZE = 65535
_ANCILLARY = 3 * socket.CMSG_SPACE(4) if hasattr(socket, "CMSG_SPACE") else 0
_int = struct.Struct("=i")
_short = struct.Struct("=H")

Address = tuple[str, int]
Report = Callable[[QueuedError, float], None]


class Failure:
    """Why a datagram did not leave.

    `kind` is the ICMP error that the guest gets (None: silence); `mtu` belongs to
    FRAGMENTATION_NEEDED.
    """

    __slots__ = ("kind", "mtu", "reason")

    def __init__(self, reason: DropReason, kind: IcmpErrorKind | None = None, mtu: int = 0) -> None:
        self.reason = reason
        self.kind = kind
        self.mtu = mtu


class DatagramSocket:
    """A non-blocking, unconnected socket; `sock` is the caller's to poll.

    `report` is called with each entry of the error queue and the time.
    """

    __slots__ = (
        "_ancillary",
        "_by_option",
        "_dont_fragment",
        "_report",
        "_tos",
        "_ttl",
        "_v4",
        "sock",
    )

    def __init__(self, sock: socket.socket, report: Report) -> None:
        self.sock = sock
        self._report = report
        self._v4 = sock.family == socket.AF_INET
        # Ping sockets of IPv6 ignored ancillary data before Linux 5.18.
        self._by_option = not _LINUX or (
            sock.proto == socket.IPPROTO_ICMPV6 and sock.type == socket.SOCK_DGRAM
        )
        self._ttl = self._tos = -1
        self._ancillary: Ancillary = []
        self._dont_fragment: bool | None = None
        if _LINUX:
            self._set_options()

    def _set_options(self) -> None:
        options = (
            (socket.IPPROTO_IP, (IP_RECVERR, _IP_RECVTOS, _IP_RECVTTL))
            if self._v4
            else (socket.IPPROTO_IPV6, (IPV6_RECVERR, _IPV6_RECVTCLASS, _IPV6_RECVHOPLIMIT))
        )
        for option in options[1]:
            self.sock.setsockopt(options[0], option, 1)

    @property
    def dont_fragment(self) -> bool:
        """What the last datagram had; False before the first."""
        return bool(self._dont_fragment)

    def enlarge(self, size: int) -> None:
        """Let the kernel keep `size` bytes of what was not received yet, as far as it allows that."""
        with contextlib.suppress(OSError):
            if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < size:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def accept_trains(self) -> None:
        """Let the kernel hand over datagrams of one sender and one size together, where it can.

        `train_size_of` tells such a train from a datagram.
        """
        with contextlib.suppress(OSError):
            self.sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)

    def deliver(
        self,
        payload: Buffer,
        address: Address,
        ttl: int,
        tos: int,
        dont_fragment: bool,
        gso_size: int,
        now: float,
    ) -> Failure | None:
        """Send `payload` (with `gso_size`, a train of datagrams of that size); None if it has left."""
        if ttl != self._ttl or tos != self._tos:
            self._set_header(ttl, tos)
        if dont_fragment is not self._dont_fragment:
            self._set_dont_fragment(dont_fragment)
        try:
            if gso_size and gso_size < len(payload):
                return self._deliver_train(payload, address, gso_size, now)
            send_datagram(self.sock, payload, self._ancillary, address)
        except OSError as error:
            return self._deliver_again(payload, address, error, now)
        return None

    def drain(self, now: float) -> QueuedError | None:
        """Report the entries of the error queue.

        An entry of the host's own stack about a datagram that was too big is no news of
        an earlier datagram but explains the send that has just failed: it is returned.
        """
        too_big = None
        for _ in range(_DRAIN):
            entry = read_error(self.sock)
            if entry is None:
                break
            if entry.local and entry.kind is IcmpErrorKind.FRAGMENTATION_NEEDED:
                too_big = entry
            else:
                self._report(entry, now)
        return too_big

    def receive(self) -> tuple[bytes, Ancillary, int, Address]:
        """One datagram: payload, ancillary data, flags, sender. Raises OSError (BlockingIOError: none)."""
        return receive_datagram(self.sock, RECEIVE_SIZE, _ANCILLARY)

    def _deliver_again(self, payload: Buffer, address: Address, error: OSError, now: float) -> Failure | None:
        for retry in (True, False):
            if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                return Failure(DropReason.UDP_SOCKET_FULL)
            too_big = self.drain(now)
            if too_big is not None:
                return Failure(DropReason.PACKET_TOO_BIG, too_big.kind, too_big.mtu)
            if not retry:
                break
            try:
                send_datagram(self.sock, payload, self._ancillary, address)
                return None
            except OSError as again:
                error = again
        return Failure(DropReason.UDP_SOCKET_ERROR, kind_of_errno(error.errno))

    def _deliver_train(self, payload: Buffer, address: Address, size: int, now: float) -> Failure | None:
        """Let the kernel cut the train (UDP_SEGMENT), or cut it here where the kernel will not."""
        view = memoryview(payload)
        # Once more after the errors of earlier datagrams; a second failure means that the kernel will not.
        for _ in range(2 if _LINUX and len(view) <= size * _SEGMENTS else 0):
            try:
                ancillary = [*self._ancillary, (_SOL_UDP, _UDP_SEGMENT, _short.pack(size))]
                send_datagram(self.sock, view, ancillary, address)
                return None
            except BlockingIOError:
                return Failure(DropReason.UDP_SOCKET_FULL)
            except OSError:
                self.drain(now)
        for start in range(0, len(view), size):
            piece = view[start : start + size]
            try:
                send_datagram(self.sock, piece, self._ancillary, address)
            except OSError as error:
                failure = self._deliver_again(piece, address, error, now)
                if failure is not None:
                    return failure
        return None

    def _set_header(self, ttl: int, tos: int) -> None:
        self._ttl = ttl
        self._tos = tos
        if self._by_option:
            level, ttl_option, tos_option = (
                (socket.IPPROTO_IP, socket.IP_TTL, socket.IP_TOS)
                if self._v4
                else (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, socket.IPV6_TCLASS)
            )
            self.sock.setsockopt(level, ttl_option, ttl)
            self.sock.setsockopt(level, tos_option, tos)
        elif self._v4:
            self._ancillary = [
                (socket.IPPROTO_IP, _IP_TTL, _int.pack(ttl)),
                (socket.IPPROTO_IP, _IP_TOS, _int.pack(tos)),
            ]
        else:
            self._ancillary = [
                (socket.IPPROTO_IPV6, _IPV6_HOPLIMIT, _int.pack(ttl)),
                (socket.IPPROTO_IPV6, _IPV6_TCLASS, _int.pack(tos)),
            ]

    def _set_dont_fragment(self, dont_fragment: bool) -> None:
        self._dont_fragment = dont_fragment
        if not _LINUX:
            return
        mode = _PMTUDISC_DO if dont_fragment else _PMTUDISC_DONT
        if self._v4:
            self.sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, mode)
        else:
            self.sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, mode)


def traffic_class_of(ancillary: Ancillary) -> int:
    """The TOS or traffic class that a datagram came with, 0 if it is not told."""
    for level, kind, value in ancillary:
        if (level == socket.IPPROTO_IP and kind == _IP_TOS) or (
            level == socket.IPPROTO_IPV6 and kind == _IPV6_TCLASS
        ):
            return int.from_bytes(value, sys.byteorder) & 0xFF
    return 0


def train_size_of(ancillary: Ancillary) -> int:
    """The size of each datagram of a train but the last, 0 for a datagram; see `accept_trains`."""
    for level, kind, value in ancillary:
        if level == _SOL_UDP and kind == _UDP_GRO:
            return int.from_bytes(value, sys.byteorder)
    return 0


def hop_limit_of(ancillary: Ancillary) -> int:
    """The TTL or hop limit that a datagram came with, 64 if it is not told."""
    for level, kind, value in ancillary:
        if (level == socket.IPPROTO_IP and kind == _IP_TTL) or (
            level == socket.IPPROTO_IPV6 and kind == _IPV6_HOPLIMIT
        ):
            return int.from_bytes(value, sys.byteorder) & 0xFF
    return 64
