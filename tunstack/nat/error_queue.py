"""The error queue of a datagram socket (`IP_RECVERR`, Linux): who reported what about which datagram."""

from __future__ import annotations

import errno
import socket
import struct
import sys

from tunstack.ip.icmp import IcmpErrorKind

IP_RECVERR = 11
IPV6_RECVERR = 25

_EXTENDED_ERR = struct.Struct("=IBBBBII")
"""sock_extended_err: errno, origin, type, code, padding, info, data; the reporter's sockaddr follows."""
_ORIGIN_LOCAL = 1
_ORIGIN_ICMP = 2
_ORIGIN_ICMP6 = 3

_NET = IcmpErrorKind.NET_UNREACHABLE
_HOST = IcmpErrorKind.HOST_UNREACHABLE
_PORT = IcmpErrorKind.PORT_UNREACHABLE
_PROHIBITED = IcmpErrorKind.ADMIN_PROHIBITED
_TOO_BIG = IcmpErrorKind.FRAGMENTATION_NEEDED
_UNREACHABLE_V4 = (
    *(_NET, _HOST, IcmpErrorKind.PROTOCOL_UNREACHABLE, _PORT, _TOO_BIG, _NET, _NET, _HOST),
    *(_HOST, _PROHIBITED, _PROHIBITED, _NET, _HOST, _PROHIBITED, _PROHIBITED, _PROHIBITED),
)
"""By code of ICMP type 3 (RFC 792, RFC 1812 5.2.7.1)."""
_UNREACHABLE_V6 = (_NET, _PROHIBITED, _HOST, _HOST, _PORT, _PROHIBITED, _NET)
"""By code of ICMPv6 type 1 (RFC 4443 3.1)."""

_BY_ERRNO = {
    errno.EHOSTUNREACH: _HOST,
    errno.EHOSTDOWN: _HOST,
    errno.ENETUNREACH: _NET,
    errno.ENETDOWN: _NET,
    errno.EADDRNOTAVAIL: _NET,
    errno.EAFNOSUPPORT: _NET,
    errno.EACCES: _PROHIBITED,
    errno.EPERM: _PROHIBITED,
    errno.ECONNREFUSED: _PORT,
}

if sys.platform == "win32":
    _ANCILLARY = 0
else:
    _ANCILLARY = socket.CMSG_SPACE(_EXTENDED_ERR.size + 28) + 2 * socket.CMSG_SPACE(4)
    """Room for the entry with an IPv6 address, and for TTL and TOS."""
_ERROR_QUEUE = getattr(socket, "MSG_ERRQUEUE", 0) | getattr(socket, "MSG_DONTWAIT", 0)
_DATA = 576
"""Bytes of the offending datagram asked for."""


def kind_of_errno(code: int | None) -> IcmpErrorKind | None:
    """What a router would have said in place of the errno of a send, or None."""
    return _BY_ERRNO.get(code or 0)


class QueuedError:
    """One entry of an error queue.

    Attributes:
        host, port: where the offending datagram went; None where the kernel does not say.
        data: the beginning of its payload (of an ICMP socket: from the ICMP header on).
        kind: what is wrong; None if a guest need not know.
        mtu: for FRAGMENTATION_NEEDED, bytes.
        offender: the address of the router or host that reported it; None for the host itself.
        local: the host's own stack found it while sending.
    """

    __slots__ = ("data", "host", "kind", "local", "mtu", "offender", "port")

    def __init__(
        self,
        host: str | None,
        port: int,
        data: bytes,
        kind: IcmpErrorKind | None,
        mtu: int,
        offender: bytes | None,
        local: bool,
    ) -> None:
        self.host = host
        self.port = port
        self.data = data
        self.kind = kind
        self.mtu = mtu
        self.offender = offender
        self.local = local


def read_error(sock: socket.socket) -> QueuedError | None:
    """The oldest entry of the queue of `sock`, or None if it is empty."""
    if sys.platform == "win32":
        return None
    try:
        data, ancillary, _, address = sock.recvmsg(_DATA, _ANCILLARY, _ERROR_QUEUE)
    except OSError:
        return None
    host, port = (address[0], address[1]) if address else (None, 0)
    for level, kind, value in ancillary:
        is_error = (level == socket.IPPROTO_IP and kind == IP_RECVERR) or (
            level == socket.IPPROTO_IPV6 and kind == IPV6_RECVERR
        )
        if is_error and len(value) >= _EXTENDED_ERR.size:
            return _parse(host, port, data, value)
    return QueuedError(host, port, data, None, 0, None, False)


def _parse(host: str | None, port: int, data: bytes, value: bytes) -> QueuedError:
    code, origin, icmp_type, icmp_code, _, info, _ = _EXTENDED_ERR.unpack_from(value)
    if origin == _ORIGIN_LOCAL:
        kind = _TOO_BIG if code == errno.EMSGSIZE else kind_of_errno(code)
        return QueuedError(host, port, data, kind, info if kind is _TOO_BIG else 0, None, True)
    kind = None
    if origin == _ORIGIN_ICMP:
        kind = _kind_v4(icmp_type, icmp_code)
    elif origin == _ORIGIN_ICMP6:
        kind = _kind_v6(icmp_type, icmp_code)
    return QueuedError(host, port, data, kind, info if kind is _TOO_BIG else 0, _offender(value), False)


def _kind_v4(icmp_type: int, code: int) -> IcmpErrorKind | None:
    if icmp_type == 3:
        return _UNREACHABLE_V4[code] if code < len(_UNREACHABLE_V4) else _HOST
    if icmp_type == 11:
        return IcmpErrorKind.REASSEMBLY_TIMEOUT if code else IcmpErrorKind.TTL_EXCEEDED
    return IcmpErrorKind.PARAMETER_PROBLEM if icmp_type == 12 else None


def _kind_v6(icmp_type: int, code: int) -> IcmpErrorKind | None:
    if icmp_type == 1:
        return _UNREACHABLE_V6[code] if code < len(_UNREACHABLE_V6) else _HOST
    if icmp_type == 2:
        return _TOO_BIG
    if icmp_type == 3:
        return IcmpErrorKind.REASSEMBLY_TIMEOUT if code else IcmpErrorKind.TTL_EXCEEDED
    return IcmpErrorKind.PARAMETER_PROBLEM if icmp_type == 4 else None


def _offender(value: bytes) -> bytes | None:
    """The address in the sockaddr behind the entry."""
    sockaddr = value[_EXTENDED_ERR.size :]
    if len(sockaddr) < 2:
        return None
    (family,) = struct.unpack_from("=H", sockaddr)
    if family == socket.AF_INET and len(sockaddr) >= 8:
        return sockaddr[4:8]
    if family == socket.AF_INET6 and len(sockaddr) >= 24:
        return sockaddr[8:24]
    return None
